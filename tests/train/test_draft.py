"""LK loss by its definition, and a few steps of training that make a draft agree with its model."""

from concurrent.futures import ThreadPoolExecutor

import torch
from small_models import FORMS, random_ids, random_model

from moonlet.model.draft import Draft
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.train.draft import lk_loss, row_loss, rows_of, step


def test_lk_loss_is_its_definition_and_falls_along_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, 7, generator=generator, dtype=torch.double)
    q.requires_grad_()
    loss, accepted = lk_loss(p, q)
    by_hand = [
        sum(min(a, b) for a, b in zip(x, y)) for x, y in zip(p.softmax(-1).tolist(), q.detach().softmax(-1).tolist())
    ]
    assert torch.allclose(accepted, torch.tensor(by_hand, dtype=torch.double))
    assert torch.allclose(loss.detach(), -torch.tensor(by_hand, dtype=torch.double).log().sum())
    assert torch.autograd.gradcheck(lambda q: lk_loss(p, q)[0], q)
    (gradient,) = torch.autograd.grad(loss, q)
    closer = lk_loss(p, q.detach() - 0.01 * gradient)[1]
    assert (closer > accepted).all()
    assert float(lk_loss(p, p)[0].abs()) < 1e-12


def test_training_raises_what_is_accepted() -> None:
    """And leaves the model alone; in padding and before a document's start nothing counts."""
    model = random_model(FORMS["k3"](), std=0.15).requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    draft = Draft(model.config).init_weights(0)
    optimizer = MuonAdamW(draft, muon_blocks(draft), OptimConfig(0.02, 0.02))
    assert {n for n in muon_blocks(draft).values()} == {1, 2}  # q_b and kv_b by head

    def batch(seed: int) -> dict[str, torch.Tensor]:
        segments = torch.tensor([[1] * 20 + [2] * 12, [1] * 16 + [0] * 16])
        return {"tokens": random_ids(2, 32, seed), "segments": segments, "loss": (segments > 0).long()}

    def found() -> tuple[torch.Tensor, torch.Tensor]:
        rows = [row_loss(model, draft, row, 3) for row in rows_of(batch(999))]
        return sum(r.accepted for r in rows), sum(r.count for r in rows)

    start, count = found()
    assert count.tolist() == [19 + 11 + 15, 18 + 10 + 14, 17 + 9 + 13]
    with ThreadPoolExecutor(2) as pool:
        for number in range(40):
            log = step(model, draft, optimizer, batch(number), 1.0, 3, pool)
    end, _ = found()
    assert (end > 1.15 * start).all(), (start / count, end / count)
    assert 0 < log["accepted_1"] < 1 and log["loss"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))

"""Other trainers log into a run: `Trainer(..., callbacks=[trainer_callback(run)])` of transformers, and
`Trainer(logger=lightning_logger(run))` of Lightning. Neither package is loaded before its function is called.
"""

from typing import Any

from moonlet.tracker.writer import Run


def trainer_callback(run: Run) -> Any:
    """A transformers.TrainerCallback: arguments to the config, every logged number at its global step.

    Only the process with the world's rank 0 logs. The run is left open: whoever opened it closes it.
    """
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.is_world_process_zero:
                model = getattr(more.get("model"), "config", None)
                run.config.update(args.to_dict(), **({"model": model.to_dict()} if model is not None else {}))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            numbers = {name: float(v) for name, v in (logs or {}).items() if isinstance(v, int | float)}
            if state.is_world_process_zero and numbers:
                run.log(numbers, step=state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            run.flush()

    return Callback()


def lightning_logger(run: Run) -> Any:
    """A Lightning logger (`lightning.pytorch`, else `pytorch_lightning`). Only the process of rank 0 logs."""
    try:
        from lightning.pytorch.loggers.logger import Logger
        from lightning.pytorch.utilities import rank_zero_only
    except ImportError:
        from pytorch_lightning.loggers.logger import Logger
        from pytorch_lightning.utilities import rank_zero_only

    class RunLogger(Logger):
        @property
        def name(self) -> str:
            return run.folder.parent.name

        @property
        def version(self) -> int:
            return run.attempt

        @property
        def experiment(self) -> Run:
            return run

        @rank_zero_only
        def log_hyperparams(self, params: Any, *arguments: Any, **more: Any) -> None:
            run.config.update(dict(params) if hasattr(params, "keys") else vars(params))

        @rank_zero_only
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            run.log({name: float(value) for name, value in metrics.items()}, step)

        def finalize(self, status: str) -> None:
            run.flush()

    return RunLogger()

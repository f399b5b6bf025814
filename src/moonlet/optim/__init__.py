"""MuonClip and its companions: per-head Muon, AdamW for the rest, QK-Clip, expert balancing, the schedule."""

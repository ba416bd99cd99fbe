"""Where a run is tracked, as plain values. Each field has the name of its flag."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingSettings:
    """Where a run's numbers and files go besides its own folder."""

    trackers: tuple[str, ...]
    tracker_project: str
    run_name: str | None
    tags: tuple[str, ...]
    logging_dir: str
    push_to_hub: bool
    hub_model_id: str | None
    hub_token: str | None
    flags: Mapping[str, object]  # every flag but the token: the config that trackers show

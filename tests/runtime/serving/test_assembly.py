"""What a server is put together from: what it cannot do is refused before it starts."""

from pathlib import Path

import pytest

from trimtab.runtime.serving.assembly import steering_of
from trimtab.runtime.serving.config import ServeConfig
from trimtab.traces.errors import ConfigError


def test_a_scheduler_that_places_by_worth_is_refused():
    config = ServeConfig(fleet_path=Path("fleet.yaml"), scheduler="marginal-value")
    with pytest.raises(ConfigError, match="scheduler 'marginal-value' places by worth"):
        steering_of(config, None)
    served = ServeConfig(fleet_path=Path("fleet.yaml"), scheduler="universal-scorer")
    assert steering_of(served, None).scheduler_name == "universal-scorer"

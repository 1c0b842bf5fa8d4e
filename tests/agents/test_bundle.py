"""Bundles: what is saved is what is loaded, and whatever does not fit is refused by name."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save
from torch import nn

from trimtab.agents import bundle as bundle_module
from trimtab.agents.bundle import load_bundle, record_verdict, save_bundle
from trimtab.agents.policy_network import EquivariantPolicy
from trimtab.env.knobs import BIAS_SCALE, KNOB_INDEX, TUNABLE_KNOBS, Knobs
from trimtab.env.observation import Observation, ObservationLayout, observation_space
from trimtab.env.state.registry import registry_hash
from trimtab.runtime.policy_process.policy_source import policy_of
from trimtab.traces.errors import BundleError

LAYOUT = ObservationLayout(max_replicas=6, max_gpus=8, max_servers=2, max_tenants=2)
NUM_REPLICAS = 4
BASE_KNOBS = Knobs.of(scorer_weight=1.0, backlog=1.3, shed_batch=0.7)
EVALUATION = {"goodput": {"policy": 0.91234567, "base": 0.9}, "seeds": [1, 2], "note": "a|b"}
WEIGHT = "head.bias.0.weight"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_observation(seed: int = 0) -> Observation:
    space = observation_space(LAYOUT)
    space.seed(seed)
    observation = space.sample()
    for node, count in (("replica", NUM_REPLICAS), ("gpu", 5), ("server", 2), ("tenant", 1)):
        observation[f"{node}_mask"][:] = 0.0
        observation[f"{node}_mask"][:count] = 1.0
    return observation


def make_policy(layout: ObservationLayout = LAYOUT) -> EquivariantPolicy:
    """A policy whose heads answer to their input, some actions beyond the limits."""
    torch.manual_seed(0)
    action_space = spaces.Box(-1.0, 1.0, (layout.action_size,), np.float32)
    policy = EquivariantPolicy(observation_space(layout), action_space, lambda _: 3e-4)
    for head in (policy.action_net.knobs, policy.action_net.bias):
        nn.init.normal_(head[-1].weight, std=0.3)
    return policy


def save_to(path: Path, **arguments: Any) -> Path:
    complete: dict[str, Any] = {
        "policy": make_policy(),
        "base_knobs": BASE_KNOBS,
        "layout": LAYOUT,
        "evaluation": EVALUATION,
        "description": "256 random windows",
    }
    save_bundle(path, **(complete | arguments))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_to(tmp_path / "bundle")


def edit_config(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((path / "config.json").read_text())
    edit(config)
    (path / "config.json").write_text(json.dumps(config))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change tensors and make the checksum fit, as another writer would."""
    tensors = load_file(path / "policy.safetensors")
    edit(tensors)
    content = save(tensors)
    (path / "policy.safetensors").write_bytes(content)
    edit_config(path, lambda config: config.update(weights_sha256=sha256(content).hexdigest()))


def backlog_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["knobs"][KNOB_INDEX["backlog"]]


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_loaded_actions_equal_those_of_the_policy_bit_by_bit(saved: Path):
    policy, bundle = make_policy(), load_bundle(saved)
    actions = [bundle.action(make_observation(seed)) for seed in range(20)]
    for seed, action in enumerate(actions):
        expected, _ = policy.predict(make_observation(seed), deterministic=True)
        assert action.dtype == np.float32
        assert action.tobytes() == expected.tobytes()
    assert np.abs(actions).max() == 1.0
    assert np.std(actions, axis=0)[: len(TUNABLE_KNOBS) + NUM_REPLICAS].min() > 0.0


def test_knobs_are_the_base_moved_by_the_action(saved: Path):
    bundle, observation = load_bundle(saved), make_observation()
    action, knobs = bundle.action(observation), bundle.knobs(observation)
    num_knobs = len(TUNABLE_KNOBS)
    assert knobs["backlog"] == pytest.approx(1.3 * np.exp(0.5 * action[0]))
    expected = BIAS_SCALE * action[num_knobs : num_knobs + NUM_REPLICAS]
    np.testing.assert_allclose(knobs.replica_bias, expected)
    assert knobs["scorer_weight"] == 1.0


def test_untrained_policy_sets_the_base_knobs(tmp_path: Path):
    policy = make_policy()
    for head in (policy.action_net.knobs, policy.action_net.bias):
        nn.init.zeros_(head[-1].weight)
    knobs = load_bundle(save_to(tmp_path / "zero", policy=policy)).knobs(make_observation())
    np.testing.assert_allclose(knobs.values, BASE_KNOBS.values, rtol=1e-15)
    assert not knobs.replica_bias.any()


def test_what_is_saved_is_loaded(saved: Path):
    bundle = load_bundle(saved)
    assert np.array_equal(bundle.base_knobs.values, BASE_KNOBS.values)
    assert bundle.layout == LAYOUT
    assert bundle.evaluation == EVALUATION
    assert bundle.trained_on == "256 random windows"
    assert not any(parameter.requires_grad for parameter in bundle.actor.parameters())


def test_directory_holds_four_files_and_only_the_actor(saved: Path):
    assert names_in(saved) == ["README.md", "config.json", "eval.json", "policy.safetensors"]
    assert names_in(saved.parent) == ["bundle"]
    tensors = load_file(saved / "policy.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"extractor", "head"}
    config = json.loads((saved / "config.json").read_text())
    assert config["registry_hash"] == registry_hash()
    assert config["versions"]["torch"] == str(torch.__version__)


def test_model_card_tells_what_where_and_limits(saved: Path):
    card = (saved / "README.md").read_text()
    for line in (
        "# bundle",
        "256 random windows",
        "| goodput.policy | 0.9123 |",
        "| note | a\\|b |",
        "- At most 6 replicas, 8 gpus, 2 servers, 2 tenants.",
    ):
        assert line in card.splitlines()
    assert registry_hash() in card


def test_loading_draws_nothing_from_the_global_generator(saved: Path):
    before = torch.get_rng_state()
    load_bundle(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_existing_path_is_refused_unless_it_is_a_bundle_to_overwrite(saved: Path):
    with pytest.raises(BundleError, match="exists; choose another path or pass overwrite=True"):
        save_to(saved)
    save_to(saved, description="other", overwrite=True)
    assert load_bundle(saved).trained_on == "other"
    assert names_in(saved.parent) == ["bundle"]
    (saved / "policy.safetensors").unlink()
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        save_to(saved, overwrite=True)
    assert (saved / "config.json").exists()


@pytest.mark.parametrize("is_overwriting", [False, True])
def test_failed_save_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_overwriting: bool
):
    target = tmp_path / "bundle"
    if is_overwriting:
        save_to(target, description="first")
    before = names_in(tmp_path)
    rename = Path.rename

    def fail_to_publish(self: Path, other: Path) -> Path:
        if self.suffix == ".new":
            raise OSError("disk is gone")  # noqa: EM101
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_to_publish)
    with pytest.raises(OSError, match="disk is gone"):
        save_to(target, overwrite=is_overwriting)
    assert names_in(tmp_path) == before
    if is_overwriting:
        assert load_bundle(target).trained_on == "first"


def diverged_policy() -> EquivariantPolicy:
    policy = make_policy()
    nn.init.constant_(policy.action_net.bias[0].weight, torch.nan)
    return policy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": diverged_policy}, f"policy weight '{WEIGHT}' is not finite"),
        ({"layout": lambda: ObservationLayout()}, "another layout than .*max_replicas=16"),
        ({"base_knobs": lambda: BASE_KNOBS.with_bias(np.array([0.5]))}, r"bias, got \[0.5\]"),
        ({"evaluation": lambda: {"x": float("nan")}}, "evaluation must be plain JSON with finite"),
        ({"evaluation": lambda: {"x": np.float32(1)}}, "evaluation must be plain JSON.*float32"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path, arguments: dict[str, Callable[[], Any]], message: str
):
    with pytest.raises(ValueError, match=message):
        save_to(tmp_path / "bundle", **{name: make() for name, make in arguments.items()})
    assert not names_in(tmp_path)


def test_registry_mismatch_names_both_hashes(saved: Path):
    edit_config(saved, lambda config: config.update(registry_hash="0123456789abcdef"))
    message = f"registry is 0123456789abcdef, this code has {registry_hash()}; train anew"
    with pytest.raises(BundleError, match=message):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format_version=2), "format_version is 2, expected 1"),
        (lambda c: c.pop("format_version"), "format_version is None, expected 1"),
        (lambda c: c.update(extra=1), "config.json: extra: Unexpected keyword"),
        (lambda c: c.pop("layout"), "config.json: layout: Field required"),
        (lambda c: c.update(hidden_size=0), "hidden_size: Input should be greater than or equal"),
        (lambda c: c["layout"].update(max_gpus=0), "max_gpus must be at least 1, got 0"),
        (lambda c: c["knobs"][3].update(name="other"), "knob is .*'other'.*, this code has"),
        (lambda c: backlog_of(c).update(high=9.0), "'backlog'.*high=9.0.*this code has .*high="),
        (lambda c: backlog_of(c).update(residual_scale=9), "scale=9.0.*code has .*scale="),
        (lambda c: c["knobs"].pop(), r"number of knobs is \d+, this code has \d+"),
        (lambda c: c.update(bias_scale=0.3), f"bias_scale is 0.3, this code has {BIAS_SCALE}"),
        (lambda c: c["base_knobs"].pop("backlog"), r"number of base_knobs is \d+"),
        (lambda c: c["base_knobs"].update(backlog=99.0), r"'backlog' must be in .*got 99"),
        (lambda c: c.update(hidden_size=16), r"float32 \[.*32.*\], expected float32 \[.*16.*\]"),
    ],
)
def test_config_that_does_not_fit_is_refused(
    saved: Path, edit: Callable[[dict[str, Any]], object], message: str
):
    edit_config(saved, edit)
    with pytest.raises(BundleError, match=message):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(WEIGHT), f"this code's actor differ in {WEIGHT}"),
        (lambda t: t.update(more=torch.zeros(1)), "this code's actor differ in more"),
        (
            lambda t: t.update({WEIGHT: torch.zeros(2, 3)}),
            rf"tensor '{WEIGHT}' is float32 \[2, 3\], expected float32 \[64, 160\]",
        ),
        (lambda t: t.update({WEIGHT: t[WEIGHT].double()}), rf"'{WEIGHT}' is float64"),
        (lambda t: t[WEIGHT].fill_(torch.inf), f"tensor '{WEIGHT}' is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    saved: Path, edit: Callable[[dict[str, torch.Tensor]], object], message: str
):
    edit_weights(saved, edit)
    with pytest.raises(BundleError, match=message):
        load_bundle(saved)


@pytest.mark.parametrize("name", ["config.json", "eval.json", "policy.safetensors"])
def test_missing_file_is_named(saved: Path, name: str):
    (saved / name).unlink()
    with pytest.raises(BundleError, match=f"cannot read {name} .No such file"):
        load_bundle(saved)


def test_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(BundleError, match=r"'.*nowhere': cannot read config\.json"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "eval.json"])
@pytest.mark.parametrize(
    ("content", "fault"), [("{", "is not JSON"), ("[]", "is not a JSON object")]
)
def test_corrupt_json_is_named(saved: Path, name: str, content: str, fault: str):
    (saved / name).write_text(content)
    with pytest.raises(BundleError, match=f"{name} {fault}"):
        load_bundle(saved)


def test_flipped_bit_in_the_weights_is_seen(saved: Path):
    content = bytearray((saved / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "policy.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"policy.safetensors has sha256 \w{64}, expected \w{64}"):
        load_bundle(saved)


def test_weights_in_another_format_are_refused(saved: Path):
    (saved / "policy.safetensors").write_bytes(b"not tensors")
    digest = sha256(b"not tensors").hexdigest()
    edit_config(saved, lambda config: config.update(weights_sha256=digest))
    with pytest.raises(BundleError, match=r"policy\.safetensors is corrupt"):
        load_bundle(saved)


def remove_fleet(observation: Observation) -> None:
    del observation["fleet"]


def cut_replicas(observation: Observation) -> None:
    observation["replica"] = observation["replica"][:24]


def spoil_gpu(observation: Observation) -> None:
    observation["gpu"][0] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_fleet, "observation 'fleet' is missing"),
        (cut_replicas, r"observation 'replica' has shape \(24,\); .* shape \(72,\)"),
        (spoil_gpu, "observation 'gpu' is not finite"),
    ],
)
def test_wrong_observation_is_refused(
    saved: Path, spoil: Callable[[Observation], None], message: str
):
    observation = make_observation()
    spoil(observation)
    with pytest.raises(ValueError, match=message):
        load_bundle(saved).knobs(observation)


def test_no_pickle_is_imported():
    source = Path(bundle_module.__file__).read_text()
    assert "import pickle" not in source
    assert "torch.load" not in source


def test_a_refused_policy_is_off_and_its_card_says_why(saved: Path):
    assert load_bundle(saved).may_act  # nobody has judged it
    reasons = ["the gain's lower bound is -0.20 points, not above 0"]
    record_verdict(saved, {"may_act": False, "reasons": reasons})
    bundle = load_bundle(saved)
    assert not bundle.may_act
    assert bundle.evaluation["goodput"] == EVALUATION["goodput"]
    card = (saved / "README.md").read_text()
    assert "the policy is OFF" in card
    assert reasons[0] in card
    policy, _ = policy_of(saved, "round-robin")
    assert policy.is_constant
    assert policy.begin().values.tobytes() == BASE_KNOBS.values.tobytes()


def test_a_policy_that_passed_acts(saved: Path):
    record_verdict(saved, {"may_act": True, "reasons": []})
    assert load_bundle(saved).may_act
    assert "Passed: the policy may act" in (saved / "README.md").read_text()
    policy, _ = policy_of(saved, "round-robin")
    assert not policy.is_constant

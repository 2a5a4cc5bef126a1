"""Whatever stands in settings, tasks and adapters: they are read, or refused in one sentence."""

import json
import shutil
from contextlib import suppress

import pytest
import yaml
from builders import merge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evox_evogm.command.experts import expert_folders
from evox_evogm.command.settings import RunSettings
from evox_evogm.command.settings_file import read_settings
from evox_evogm.command.task_settings import TaskSettings
from evox_evogm.command.tasks import read_task
from evox_evogm.problems.adapters.check_fit import check_together, fit_experts
from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS, read_expert
from evox_evogm.problems.tasks.readers import read_json_lines, read_swarm_eval

SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
few = settings(max_examples=150, **SHARED)
many = settings(max_examples=5000, **SHARED)
EFFORTS = [few, pytest.param(many, marks=pytest.mark.slow)]
RUNS = [
    settings(max_examples=12, **SHARED),
    pytest.param(settings(max_examples=300, **SHARED), marks=pytest.mark.slow),
]

scalars = st.none() | st.booleans() | st.integers(-3, 10**25) | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def tables(*keys, more=values):
    """Tables whose keys are mostly ones that mean something."""
    return st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), more, max_size=6)


def read(call):
    """The result, or None where the input was refused in one sentence."""
    with suppress(ModuleNotFoundError):
        try:
            return call()
        except ValueError as error:
            assert str(error).strip()
    return None


@pytest.mark.parametrize("effort", EFFORTS)
def test_settings(effort, tmp_path):
    path = tmp_path / "run.yaml"

    @effort
    @given(tables(*RunSettings.model_fields), tables(*TaskSettings.model_fields), st.booleans())
    def check(table, task, complete):
        if complete:
            table = {"base": "b", "experts": "e", "tasks": [{"swarm_eval": "q", **task}], **table}
        path.write_text(yaml.safe_dump(table), encoding="utf-8")
        result = read(lambda: read_settings(path))
        assert result is None or isinstance(result[0], RunSettings)
        read(lambda: expert_folders(table.get("experts"), tmp_path))

    check()


@pytest.mark.parametrize("effort", EFFORTS)
def test_settings_of_any_bytes(effort, tmp_path):
    path = tmp_path / "run.yaml"

    @effort
    @given(
        st.binary(max_size=60)
        | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )
    def check(content):
        path.write_bytes(content)
        read(lambda: read_settings(path))

    check()


ROW = ("question", "answer", "choices", "id")
rows = tables(*ROW, more=st.sampled_from(["a", "A", 1, {"A": "x"}, ["x", "y"]]) | values)


@pytest.mark.parametrize("effort", EFFORTS)
def test_tasks(effort, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answer": "a"}')
    keys = ("name", "dev", "test", "metric", "match", "max_new_tokens", "chat", "continuation")

    @effort
    @given(
        st.lists(rows.map(json.dumps) | st.text(max_size=20), max_size=4),
        tables("dev", "test", "icl_prompt", more=st.lists(rows, max_size=3) | values),
        tables(*keys),
    )
    def check(lines, sets, more):
        (tmp_path / "dev.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="replace")
        (tmp_path / "set.json").write_text(json.dumps(sets))
        read(lambda: read_json_lines(tmp_path / "dev.jsonl", tmp_path / "test.jsonl"))
        read(lambda: read_swarm_eval(tmp_path / "set.json"))
        read(
            lambda: read_task(
                {"json_lines": "dev.jsonl", "test_file": "test.jsonl", **more}, tmp_path
            )
        )
        read(lambda: read_task({"swarm_eval": "set.json", **more}, tmp_path))
        read(lambda: read_task(more, tmp_path))

    check()


@pytest.mark.parametrize("effort", EFFORTS)
def test_adapter_configurations(effort, make_adapter, model, tokenizer):
    folder = make_adapter("first")
    plain = json.loads((folder / CONFIG).read_text())

    @effort
    @given(tables(*plain))
    def check(changes):
        (folder / CONFIG).write_text(json.dumps({**plain, **changes}))
        expert = read(lambda: read_expert(folder))
        if expert is not None:
            read(lambda: check_together([expert, expert]))
            read(lambda: fit_experts([expert], model, tokenizer))

    check()


@pytest.mark.parametrize("effort", EFFORTS)
def test_adapter_weights(effort, make_adapter, model, tokenizer):
    folder = make_adapter("first")
    plain = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8 : 8 + size])

    @effort
    @given(
        st.integers(0, min(len(plain) - 1, 8 + size)),
        st.binary(max_size=6),
        st.dictionaries(
            st.sampled_from(sorted(header)), tables("dtype", "shape", "data_offsets"), max_size=2
        ),
        st.booleans(),
    )
    def check(position, piece, entries, cut):
        changed = json.dumps({**header, **entries}).encode()
        for content in (
            plain[:position] + piece + plain[position + (0 if cut else len(piece)) :],
            plain[:position],
            len(changed).to_bytes(8, "little") + changed + plain[8 + size :],
        ):
            (folder / WEIGHTS).write_bytes(content)
            read(lambda: fit_experts([read_expert(folder)], model, tokenizer))

    check()


@pytest.mark.parametrize("effort", RUNS)
def test_names_of_tensors(effort, make_adapter, model, tokenizer):
    from safetensors.torch import load_file, save_file

    folder = make_adapter("first")
    plain = load_file(folder / WEIGHTS)
    modules = st.sampled_from([name for name, _ in model.named_modules() if name] + ["nothing"])
    ends = st.sampled_from(["base_layer.weight", "lora_A.weight", "lora_embedding_B", "bias"])

    @effort
    @given(
        st.dictionaries(st.tuples(modules, ends), st.sampled_from(sorted(plain)), max_size=3),
        st.booleans(),
    )
    def check(more, alone):
        added = {
            f"base_model.model.{module}.{end}": plain[name].clone()
            for (module, end), name in more.items()
        }
        save_file({**({} if alone else plain), **added}, folder / WEIGHTS)
        expert = read(lambda: read_expert(folder))
        if expert is not None:
            read(lambda: fit_experts([expert], model, tokenizer))

    check()


CHANGED_ONLY_BY_HAND = {"budget", "pop_size", "batch_tokens", "search"}  # long runs, or none
KEYS = sorted(set(RunSettings.model_fields) - CHANGED_ONLY_BY_HAND)


@pytest.mark.parametrize("effort", RUNS)
def test_whole_runs(effort, project, capsys):
    """Through the command: a run that ends well, or one sentence and nothing half-written."""
    path, config = project / "run.yaml", project / "experts/first" / CONFIG
    plain, plain_config = yaml.safe_load(path.read_text()), json.loads(config.read_text())

    @effort
    @given(
        st.dictionaries(st.sampled_from(KEYS), values, max_size=1),
        st.dictionaries(st.sampled_from(sorted(plain_config)), values, max_size=1),
        st.lists(rows.map(json.dumps), max_size=3),
    )
    def check(changes, config_changes, lines):
        path.write_text(yaml.safe_dump({**plain, "budget": 4, **changes}), encoding="utf-8")
        config.write_text(json.dumps({**plain_config, **config_changes}))
        (project / "dev.jsonl").write_text("\n".join(lines) or '{"question": "q", "answer": "a"}')
        shutil.rmtree(project / "out", ignore_errors=True)
        status = merge(project)
        error = capsys.readouterr().err
        assert status in (0, 2), error
        assert (status == 0) == (project / "out").exists()
        assert not status or (error.startswith("evogm: ") and error.count("\n") == 1)

    check()

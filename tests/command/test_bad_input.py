"""Input that cannot be used: each case ends in one sentence, status 2, and nothing half-written."""

import json
import shutil

import pytest
import torch
import yaml
from builders import change_settings, history, merge


def settings(**changes):
    return lambda project: change_settings(project, **changes)


def text(name, content):
    return lambda project: (project / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def config(**changes):
    """Change the configuration of the first adapter."""

    def change(project):
        path = project / "experts/first/adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def tensors(change):
    """Change the tensors of the first adapter."""

    def rewrite(project):
        from safetensors.torch import load_file, save_file

        path = project / "experts/first/adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return rewrite


def task(**changes):
    """Change the settings of the task `sums`."""

    def change(project):
        entry = yaml.safe_load((project / "run.yaml").read_text())["tasks"][0]
        change_settings(project, tasks=[{**entry, **changes}])

    return change


def quiz(change):
    """Change the content of quiz.json."""

    def rewrite(project):
        path = project / "quiz.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return rewrite


def weights(change):
    """Change the bytes of the first adapter's weights."""

    def rewrite(project):
        path = project / "experts/first/adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def header(text):
    return len(text).to_bytes(8, "little") + text


def without(name):
    def remove(project):
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def renamed(old, new):
    return lambda project: (project / old).rename(project / new)


def first(key):
    """A change of the first tensor whose name contains `key`."""

    def decorate(change):
        def apply(found):
            name = next(name for name in sorted(found) if key in name)
            return {**found, name: change(found[name]).contiguous()}

        return tensors(apply)

    return decorate


def both(*changes):
    return lambda project: [change(project) for change in changes]


def replaced(name, old, new):
    """Change the text of a file."""

    def change(project):
        content = (project / name).read_text()
        assert old in content
        (project / name).write_text(content.replace(old, new, 1))

    return change


def tokenizer_of_another(project):
    content = json.loads((project / "base/tokenizer.json").read_text())
    content["model"]["vocab"]["another"] = content["model"]["vocab"].pop("A")
    (project / "experts/first/tokenizer.json").write_text(json.dumps(content))


def an_empty_choice_in_test(project):
    path = project / "base/tokenizer_config.json"
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "chat_template": "{{ messages[0]['content'] }}"}
        )
    )
    quiz(lambda c: c["test"][2].update(choices={"A": "", "B": "no"}))(project)
    change_settings(
        project,
        tasks=[
            {
                "swarm_eval": "quiz.json",
                "metric": "choice_likelihood",
                "continuation": "text",
                "chat": True,
            }
        ],
    )


def one_tensor(dtype, size):
    entry = {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, size]}
    return (
        header(json.dumps({"base_model.model.model.layers.0.lora_A.weight": entry}).encode())
        + b"\0" * size
    )


ADAPTER, WEIGHTS = "experts/first/adapter_config.json", "experts/first/adapter_model.safetensors"
BUDGET = "budget: expected a whole number of evaluations, or a time such as 20min"
CASES = {
    # the settings file
    "no settings": (without("run.yaml"), "settings: expected a YAML file, found none"),
    "not YAML": (text("run.yaml", "base: ["), "run.yaml: expected YAML"),
    "not UTF-8": (text("run.yaml", b"\xff\xfe\x00"), "run.yaml: expected YAML"),
    "a list": (text("run.yaml", "- base"), "run.yaml: expected a table of settings, found a list"),
    "empty": (text("run.yaml", ""), "run.yaml: expected a table of settings, found an empty file"),
    "a Python object": (
        text("run.yaml", "base: !!python/object/apply:os.system [true]"),
        "run.yaml: expected YAML",
    ),
    "misspelt": (settings(bugdet=3), "unknown setting 'bugdet'; did you mean 'budget'?"),
    "unlike any": (settings(zzz=3), "unknown setting 'zzz'; known are"),
    "no base": (
        settings(base=..., experts=["experts/first"]),
        "expected the setting 'base', found none",
    ),
    "no experts": (settings(experts=...), "expected the setting 'experts', found none"),
    "no tasks": (settings(tasks=...), "expected the setting 'tasks', found none"),
    "base of the wrong type": (settings(base=3), "base: expected a str, found 3"),
    "budget in words": (settings(budget="many"), f"{BUDGET}, found 'many'"),
    "budget 0": (settings(budget=0), "budget: expected at least 1, found 0"),
    "budget under a population": (
        settings(budget=3),
        "budget: expected at least one population, 4 evaluations, found 3",
    ),
    "half a seed": (settings(seed=0.5), "seed: expected a whole number, found 0.5"),
    "negative seed": (settings(seed=-1), "seed: expected at least 0, found -1"),
    "true for a number": (settings(budget=True), f"{BUDGET}, found True"),
    "unknown device": (
        settings(device="abacus"),
        "device: expected one that torch can use here, found 'abacus'",
    ),
    "unknown dtype": (settings(dtype="int8"), "dtype: expected one of auto, float32"),
    "no tokens": (settings(batch_tokens=0), "batch_tokens: expected at least 1, found 0"),
    "no memory": (
        settings(max_memory=0),
        "max_memory: expected a number of GiB above 0 and below 2**30, found 0",
    ),
    "memory in words": (
        settings(max_memory="2 GB"),
        "max_memory: expected a number or auto, found '2 GB'",
    ),
    "unknown mode": (
        settings(mode="dense"),
        'mode: expected "auto", "unmerged" or "merged", found \'dense\'',
    ),
    "mode of no task": (settings(mode={"nope": "merged"}), "mode: expected names of tasks"),
    "mode a number": (settings(mode=3), 'mode: expected "auto", "unmerged" or "merged", found 3'),
    "population of one": (
        settings(pop_size=1),
        "pop_size: expected a whole number of at least 2, found 1",
    ),
    "search a number": (settings(search=3), "search: expected a dict, found 3"),
    "search misspelt": (
        settings(search={"epoch": 3}),
        "unknown setting 'epoch'; did you mean 'epochs'?",
    ),
    "search key a number": (settings(search={3: 3}), "unknown setting 3"),
    "a proposal": (
        settings(search={"proposal": "screened"}),
        "search: expected arguments of the algorithm, found proposal 'screened'; "
        "write algorithm: SurrogateEvoGM beside search",
    ),
    "a path": (
        settings(path="factored"),
        "run.yaml: expected the setting 'mode', found its former name 'path'; "
        "write mode instead, and unmerged instead of factored",
    ),
    "unknown algorithm": (
        settings(algorithm="PSO"),
        "algorithm: expected one of SurrogateEvoGM, EvoGM, GradientSearch, NSGA2, NSGA3, RVEA, "
        "RVEAa, MOEAD, found 'PSO'",
    ),
    "racing in the paper's method": (
        settings(racing=True),
        "racing: expected false with algorithm EvoGM, found true; only SurrogateEvoGM can prune",
    ),
    "an argument of the other algorithm": (
        settings(algorithm="SurrogateEvoGM"),
        "search: found 'epochs', an argument of EvoGM; SurrogateEvoGM has box_growth",
    ),
    "a proposal that never was": (
        settings(search={"proposal": "luck"}),
        "search: found the unknown setting 'proposal'; known are n_rounds, n_iters, epochs",
    ),
    "what follows from other settings": (
        settings(search={"clamp": True}),
        "search: found the unknown setting 'clamp'",
    ),
    "an object": (
        settings(algorithm="SurrogateEvoGM", search={"outcomes": 2}),
        "search: found the unknown setting 'outcomes'; known are box_growth",
    ),
    "negative rate": (settings(search={"lr": -1}), "lr: expected a number of at least 0, found -1"),
    "no epochs": (
        settings(search={"epochs": 0}),
        "epochs: expected a whole number of at least 1, found 0",
    ),
    "ratio over 1": (
        settings(search={"winner_ratio": 2}),
        r"winner_ratio: expected a number in (0, 1], found 2",
    ),
    "width in words": (
        settings(search={"hidden_dims": ["wide"]}),
        "hidden_dims[0]: expected a whole number",
    ),
    "trust in words": (
        settings(trust_remote_code="yes"),
        "trust_remote_code: expected a bool, found 'yes'",
    ),
    "same_base in words": (settings(same_base="yes"), "same_base: expected a bool, found 'yes'"),
    "chat_template a text": (
        settings(chat_template="qwen"),
        "chat_template: expected a table, found 'qwen'",
    ),
    "no chat template file": (
        settings(chat_template_file="none"),
        "chat_template_file: expected a file with a chat template",
    ),
    "a setting twice": (replaced("run.yaml", "seed: 3", "seed: 3\nseed: 4"), "found 'seed' twice"),
    "a name twice": (
        both(
            settings(experts={"one": "experts/first", "two": "experts/second"}),
            replaced("run.yaml", "two:", "one:"),
        ),
        "run.yaml: expected YAML, found expected different names in a table, found 'one' twice",
    ),
    "a number and a text as one name": (
        both(
            settings(experts={1: "experts/first", "two": "experts/second"}),
            replaced("run.yaml", "two:", "'1':"),
        ),
        "found '1' twice",
    ),
    "deep": (text("run.yaml", "base: " + "[" * 10_000), "run.yaml: expected YAML"),
    "a day that is none": (
        text("run.yaml", "seed: 2020-13-45"),
        "run.yaml: expected YAML, found month must be in 1..12",
    ),
    "a time that is none": (text("run.yaml", "seed: !!timestamp x"), "run.yaml: expected YAML"),
    "a truth that is none": (text("run.yaml", "seed: !!bool x"), "run.yaml: expected YAML"),
    "a seed of 65 bits": (settings(seed=2**64), "seed: expected less than 2**64"),
    "memory beyond measure": (
        settings(max_memory=1e308),
        "max_memory: expected a number of GiB above 0 and below 2**30",
    ),
    # tasks
    "no task": (settings(tasks=[]), "tasks: expected at least one, found none"),
    "tasks a table": (settings(tasks={"a": 1}), "tasks: expected a list"),
    "task a text": (
        settings(tasks=["quiz.json"]),
        "tasks: expected a table with one of reasoning_gym",
    ),
    "no reader": (
        settings(tasks=[{"dev": 3}]),
        "tasks: expected a table with one of reasoning_gym",
    ),
    "reader misspelt": (
        settings(tasks=[{"swarm_evil": "quiz.json"}]),
        "tasks: expected a table with one of reasoning_gym, swarm_eval, json_lines",
    ),
    "no such set": (
        settings(tasks=[{"swarm_eval": "none.json"}]),
        "task 'none': expected a file, found none at",
    ),
    "no number of questions": (
        settings(tasks=[{"reasoning_gym": "syllogism", "test": 2}]),
        "expected dev to be a number of examples, at least 1, found None",
    ),
    "two readers": (
        settings(tasks=[{"swarm_eval": "a", "json_lines": "b"}]),
        "tasks: expected a table with one of",
    ),
    "one task twice": (
        settings(tasks=[{"swarm_eval": "quiz.json"}, {"swarm_eval": "quiz.json"}]),
        "tasks: expected at least one, with different names",
    ),
    "task setting misspelt": (
        task(metrik="x"),
        "unknown setting 'metrik'; did you mean 'metric'?",
    ),
    "a task's rule": (
        task(rule="exact_match"),
        "task 'sums': expected the setting 'metric', found its former name 'rule'; "
        "write metric: exact_match",
    ),
    "no dev file": (without("dev.jsonl"), "task 'sums': expected a file, found none"),
    "no test file": (without("test.jsonl"), "task 'sums': expected a file, found none"),
    "no test_file": (
        settings(tasks=[{"json_lines": "dev.jsonl"}]),
        "expected test_file beside json_lines, found none",
    ),
    "test_file a list": (task(test_file=[1]), "expected test_file beside json_lines, found [1]"),
    "half a character": (
        text("dev.jsonl", '{"question": "\\ud800", "answer": "1"}'),
        "dev.jsonl, line 1: expected text, found half of a character, '\\ud800'",
    ),
    "half a character in a choice": (
        quiz(lambda c: c["test"][1].update(choices={"A": "\ud800", "B": "x"})),
        "quiz.json, test 1: expected text, found half of a character",
    ),
    "an answer of no tokens": (
        an_empty_choice_in_test,
        "expected answers of at least one token, found ''",
    ),
    "empty dev file": (
        text("dev.jsonl", ""),
        "task 'sums': expected at least one example, found none",
    ),
    "a line not JSON": (text("dev.jsonl", "{"), "dev.jsonl, line 1: expected JSON"),
    "a line deep": (text("dev.jsonl", "[" * 100_000), "dev.jsonl, line 1: expected JSON"),
    "a line a list": (
        text("dev.jsonl", "[1]"),
        "dev.jsonl, line 1: expected an object with question and answer",
    ),
    "no question": (
        text("dev.jsonl", '{"answer": "1"}'),
        "dev.jsonl, line 1: expected a text under 'question', found None",
    ),
    "no answer": (
        text("dev.jsonl", '{"question": "1"}'),
        "dev.jsonl, line 1: expected a text under 'answer', found None",
    ),
    "empty answer": (
        text("dev.jsonl", '{"question": "1", "answer": " "}'),
        "expected an answer, found an empty text",
    ),
    "lines not UTF-8": (
        text("dev.jsonl", b'{"question": "\xff"}'),
        "task 'sums': expected UTF-8 text",
    ),
    "ids twice": (
        text(
            "dev.jsonl",
            '{"id": 7, "question": "a", "answer": "b"}\n{"id": 7, "question": "c", "answer": "d"}',
        ),
        "task 'sums': expected different ids, found '7' more than once",
    ),
    "dev in test": (
        task(test_file="dev.jsonl"),
        "expected dev and test to share no question, found 4 of 4 test questions in dev",
    ),
    "unknown metric": (task(metric="luck"), "task 'sums': metric: expected one of"),
    "metric a number": (task(metric=3), "task 'sums': expected metric to be a text, found 3"),
    "unknown match": (task(match="roughly"), "task 'sums': match: expected one of"),
    "tokens in words": (
        task(max_new_tokens="x"),
        "expected max_new_tokens to be a whole number, found 'x'",
    ),
    "no new tokens": (task(max_new_tokens=0), "expected max_new_tokens to be at least 1, found 0"),
    "chat in words": (
        task(chat="yes"),
        "task 'sums': expected chat to be true or false, found 'yes'",
    ),
    "chat without a template": (task(chat=True), "its tokenizer has no chat template"),
    "name a list": (task(name=["a"]), "expected name to be a text, found ['a']"),
    "choices wanted": (
        task(metric="choice_likelihood"),
        "spearman for examples without choices, found",
    ),
    "dev of 0": (task(dev=0), "expected dev to be a number of examples, at least 1, found 0"),
    "dev true": (
        task(dev=True),
        "task 'sums': expected dev to be a number of examples, at least 1, found True",
    ),
    "test true": (
        task(test=True),
        "task 'sums': expected test to be a number of examples, at least 1, found True",
    ),
    "dev in words": (
        task(dev="all"),
        "expected dev to be a number of examples, at least 1, found 'all'",
    ),
    "set not JSON": (text("quiz.json", "{"), "quiz.json: expected JSON"),
    "set without test": (
        quiz(lambda c: c.pop("test")),
        "quiz.json: expected an object with the lists dev and test",
    ),
    "set of texts": (
        quiz(lambda c: c["dev"].__setitem__(0, "x")),
        "quiz.json, dev 0: expected an object",
    ),
    "empty set": (
        quiz(lambda c: c["dev"].clear()),
        "task 'quiz': expected at least one example in dev, found none",
    ),
    "answer no choice": (
        quiz(lambda c: c["dev"][0].update(answer="C")),
        "expected the answer to be one of A, B, found 'C'",
    ),
    "choices a number": (
        quiz(lambda c: c["test"][1].update(choices=3)),
        "quiz.json, test 1: expected choices as key",
    ),
    "choice texts numbers": (
        quiz(lambda c: c["dev"][1].update(choices={"A": 1})),
        "quiz.json, dev 1: expected choices as",
    ),
    "unknown gym task": (
        settings(tasks=[{"reasoning_gym": "nonsense", "dev": 1, "test": 1}]),
        "reasoning-gym task 'nonsense'",
    ),
    "gym options a list": (
        settings(tasks=[{"reasoning_gym": "gcd", "dev": 1, "test": 1, "options": [1]}]),
        "reasoning-gym task 'gcd': expected options to be a table, found [1]",
    ),
    "gym seed in words": (
        settings(tasks=[{"reasoning_gym": "gcd", "dev": 1, "test": 1, "seed": "x"}]),
        "reasoning-gym task 'gcd': expected seed to be a whole number, found 'x'",
    ),
    # experts
    "no such experts": (
        settings(experts="nowhere"),
        "experts: expected adapter folders with adapter_config.json in",
    ),
    "experts an adapter itself": (
        settings(experts="experts/first"),
        "found an adapter itself; give a list of adapter folders",
    ),
    "experts a number": (
        settings(experts=3),
        "experts: expected a folder, a list or a table, found 3",
    ),
    "no expert in a list": (
        settings(experts=[]),
        "experts: expected at least one adapter folder, found none",
    ),
    "an expert twice": (
        settings(experts=["experts/first"] * 2),
        "experts: expected folders with different names",
    ),
    "two experts of one name": (
        settings(experts=["experts/first", "base/first"]),
        "experts: expected folders with different names",
    ),
    "an expert that is not there": (settings(experts=["nowhere"]), "expert 'nowhere'"),
    "no configuration": (
        lambda project: (settings(experts=["experts/first"])(project), without(ADAPTER)(project)),
        "expert 'first'",
    ),
    "no weights": (without(WEIGHTS), "expert 'first'"),
    "a pickle": (
        renamed(WEIGHTS, "experts/first/adapter_model.bin"),
        "a pickle that is not read because it can run code",
    ),
    "configuration not JSON": (text(ADAPTER, "{"), "expected JSON in adapter_config.json"),
    "configuration a list": (
        text(ADAPTER, "[]"),
        "expected an object in adapter_config.json, found list",
    ),
    "configuration deep": (text(ADAPTER, "[" * 100_000), "expected JSON in adapter_config.json"),
    "configuration not UTF-8": (text(ADAPTER, b"\xff"), "expected JSON in adapter_config.json"),
    "another method": (config(peft_type="LOHA"), "expected peft_type LORA, found 'LOHA'"),
    "DoRA": (config(use_dora=True), "found DoRA"),
    "biases": (config(bias="all"), "expected bias 'none', found 'all'"),
    "LoRA biases": (config(lora_bias=True), "found lora_bias"),
    "saved modules": (config(modules_to_save=["lm_head"]), "found modules_to_save"),
    "PiSSA": (
        config(init_lora_weights="pissa"),
        "expected an adapter of the unchanged base, found init_lora_weights 'pissa'",
    ),
    "OLoRA": (config(init_lora_weights="olora"), "found init_lora_weights 'olora'"),
    "CorDA": (config(init_lora_weights="corda"), "found init_lora_weights 'corda'"),
    "a new method": (config(use_qalora=True, use_new_arithmetic=True), "found QALoRA"),
    "another vocabulary": (
        tokenizer_of_another,
        "expected the vocabulary of the base, found a tokenizer that differs in 2",
    ),
    "alpha beyond measure": (
        config(lora_alpha=10**400),
        "expected lora_alpha in adapter_config.json to be a finite number",
    ),
    "a pattern without end": (
        config(rank_pattern={"((a+)+)+b": 4}),
        "expected names or short regular expressions in rank_pattern, "
        "with at most one group and two repetitions",
    ),
    "a pattern of a kilobyte": (
        config(alpha_pattern={"x" * 1000: 4}),
        "expected names or short regular expressions",
    ),
    "rank in words": (
        config(r="four"),
        "expected r in adapter_config.json to be a whole number, found 'four'",
    ),
    "rank 0": (
        config(r=0),
        "expected r in adapter_config.json to be a whole number of at least 1, found 0",
    ),
    "another rank": (config(r=5), "expected rank 5 in"),
    "half a rank": (config(rank_pattern={"q_proj": 2.5}), "expected rank_pattern 'q_proj'"),
    "alpha infinite": (
        config(lora_alpha=float("inf")),
        "expected lora_alpha in adapter_config.json to be a finite number",
    ),
    "no alpha": (
        config(lora_alpha=None),
        "expected lora_alpha in adapter_config.json to be a number, found None",
    ),
    "pattern no expression": (
        config(alpha_pattern={"(": 2}),
        "expected a regular expression in alpha_pattern, found '('",
    ),
    "rsLoRA in words": (
        config(use_rslora="yes"),
        "expected use_rslora in adapter_config.json to be true or false",
    ),
    "weights cut off": (
        weights(lambda data: data[:-10]),
        "expected adapter_model.safetensors in safetensors format",
    ),
    "weights of nothing": (
        weights(lambda data: b""),
        "expected adapter_model.safetensors in safetensors format",
    ),
    "weights with a huge header": (
        weights(lambda data: (2**62).to_bytes(8, "little") + data[8:]),
        "expected adapter_model.safetensors in safetensors format",
    ),
    "weights with a header of rubbish": (
        weights(lambda data: header(b"\x00" * 20)),
        "expected adapter_model.safetensors in safetensors format",
    ),
    "weights that overlap": (
        weights(
            lambda data: (
                header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}') + b"\x00" * 16
            )
        ),
        "expected adapter_model.safetensors in safetensors format",
    ),
    "weights of negative shape": (
        weights(
            lambda data: (
                header(b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}') + b"\x00" * 16
            )
        ),
        "expected adapter_model.safetensors in safetensors format",
    ),
    "no tensors": (
        weights(lambda data: header(b"{}")),
        "expected LoRA tensors in adapter_model.safetensors, found none",
    ),
    "not a number": (
        first("lora_A")(lambda t: t * float("nan")),
        "expected finite weights, found NaN or infinity",
    ),
    "infinity": (
        first("lora_B")(lambda t: t / 0),
        "expected finite weights, found NaN or infinity",
    ),
    "complex weights": (
        first("lora_A")(lambda t: t.to(torch.complex64)),
        "expected weights in float32, bfloat16",
    ),
    "whole weights": (first("lora_A")(lambda t: t.to(torch.int8)), "found float32, int8"),
    "weights of four bits": (weights(lambda data: one_tensor("F4", 2)), "expert 'first'"),
    "weights of an unknown kind": (
        weights(lambda data: one_tensor("F3", 2)),
        "in safetensors format",
    ),
    "a copy of a container": (
        tensors(
            lambda t: {
                **t,
                "base_model.model.model.layers.0.self_attn.base_layer.weight": torch.zeros(2),
            }
        ),
        "expected the saved copy of model.layers.0.self_attn to equal the base, "
        "found other weights",
    ),
    "factors swapped": (
        tensors(
            lambda t: {
                k.replace("lora_A", "x").replace("lora_B", "lora_A").replace("x", "lora_B"): v
                for k, v in t.items()
            }
        ),
        "expected rank 4 in",
    ),
    "a factor missing": (
        tensors(lambda t: {k: v for k, v in t.items() if "lora_A" in k}),
        "found only lora_A",
    ),
    "a strange tensor": (
        tensors(lambda t: {**t, "head": next(iter(t.values())).clone()}),
        "expected only lora_A and lora_B",
    ),
    "a cube": (first("lora_A")(lambda t: t[None]), "expected rank 4 in"),
    "another width": (first("lora_A")(lambda t: t[:, :-1]), "expected (inputs, outputs)"),
    "another model": (
        tensors(
            lambda t: {name.replace("layers.0", "layers.9"): value for name, value in t.items()}
        ),
        "found no such module",
    ),
    "a tokenizer of rubbish": (
        text("experts/first/tokenizer.json", "{"),
        "expected a tokenizer in tokenizer.json",
    ),
    # base and run folder
    "no such base": (
        settings(base="org/nowhere"),
        "base: expected a transformers folder or hub id, found 'org/nowhere'",
    ),
    "base without configuration": (
        without("base/config.json"),
        "base: expected a transformers folder or hub id",
    ),
    "base without weights": (
        without("base/model.safetensors"),
        "base: expected a transformers folder or hub id",
    ),
    "base without a tokenizer": (
        lambda project: [path.unlink() for path in (project / "base").glob("token*")],
        "base: expected a transformers folder or hub id",
    ),
    "base with its weights cut off": (
        lambda project: (project / "base/model.safetensors").write_bytes(
            (project / "base/model.safetensors").read_bytes()[:-9]
        ),
        "base: expected a transformers folder or hub id",
    ),
    "base configuration not JSON": (
        text("base/config.json", "{"),
        "base: expected a transformers folder or hub id",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_ends_in_one_sentence_and_status_2(project, capsys, name):
    make, message = CASES[name]
    make(project)
    before = sorted(project.iterdir())
    assert merge(project) == 2
    error = capsys.readouterr().err
    assert error.startswith("evogm: ") and error.count("\n") == 1 and "Traceback" not in error
    assert message in error
    assert sorted(project.iterdir()) == before


@pytest.mark.parametrize("kind", ["file", "folder with other files"])
def test_a_run_folder_that_is_none_is_left_alone(project, capsys, kind):
    out = project / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    assert merge(project) == 2
    error = capsys.readouterr().err
    assert (
        "out: expected a new or empty folder or an earlier run" in error and error.count("\n") == 1
    )


def test_there_are_at_least_60_cases():
    assert len(CASES) >= 60


def test_settings_of_an_adapter_that_no_arithmetic_depends_on_are_let_be(project):
    assert merge(project, "--budget", "4", out="plain") == 0
    config(note_of_a_later_peft={"author": "x"}, use_dora=False, layers_pattern=None)(project)
    assert merge(project, "--budget", "4", out="noted") == 0
    assert history(project / "noted") == history(project / "plain")

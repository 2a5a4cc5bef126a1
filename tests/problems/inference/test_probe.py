"""What a base gives rightly is found out on it, and scores are those of plain passes.

Right values come from peft and plain transformers: one pass over each question, without padding,
mask or cache.
"""

import copy
import logging

import pytest
import torch
import transformers as hf
from builders import build_model, build_tokenizer

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.weight_merger import WeightMerger
from evox_evogm.problems.inference.decoding import DecodingBatch
from evox_evogm.problems.inference.forward import reset_rope
from evox_evogm.problems.inference.logit_differences import difference, rounded_differently
from evox_evogm.problems.inference.probe_rows import rows_of

pytestmark = pytest.mark.language_model

SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 8,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "decoder_sparse_step": 1,
}
MAMBA = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
RECURRENT = {
    "vocab_size": 257,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
GEMMA = {
    **SIZES,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 40,
    "query_pre_attn_scalar": 8,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def multimodal_gemma3():
    text = hf.Gemma3TextConfig(**GEMMA).to_dict()
    config = hf.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    return hf.AutoModelForCausalLM.from_config(config)


# By name: what makes the base, the modules that experts touch, and what the probe switches off.
BASES = {
    "llama": (lambda: build_model(), ["q_proj", "v_proj"], []),
    "gemma3": (lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA)), ["q_proj"], []),
    "gemma3 multimodal": (multimodal_gemma3, r".*language_model.*(q_proj|down_proj)", []),
    "mistral": (
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=20)),
        ["q_proj"],
        [],
    ),
    "dynamic rope": (
        lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**SIZES, max_position_embeddings=48, rope_parameters=DYNAMIC)
        ),
        ["q_proj"],
        [],
    ),
    "qwen3_next": (
        lambda: hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**SIZES, **LINEAR, **EXPERTS)),
        ["q_proj", "in_proj_qkvz"],
        ["pad_after_prefix"],
    ),
    "lfm2": (
        lambda: hf.Lfm2ForCausalLM(hf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])),
        ["in_proj", "q_proj"],
        ["pad_after_prefix"],
    ),
    "falcon_h1": (
        lambda: hf.FalconH1ForCausalLM(hf.FalconH1Config(**SIZES, **MAMBA)),
        ["q_proj", "in_proj"],
        ["pad_after_prefix"],
    ),
    "mamba": (lambda: hf.MambaForCausalLM(hf.MambaConfig(**RECURRENT)), ["in_proj"], None),
    "rwkv": (
        lambda: hf.RwkvForCausalLM(
            hf.RwkvConfig(
                vocab_size=257, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
            )
        ),
        ["key", "value"],
        ["share_prefixes", "drop_rows", "pad_rows", "pad_cached_rows", "cache"],
    ),
    "recurrent gemma": (
        lambda: hf.RecurrentGemmaForCausalLM(
            hf.RecurrentGemmaConfig(
                **{**SIZES, "num_hidden_layers": 3},
                attention_window_size=24,
                head_dim=8,
                lru_width=32,
            )
        ),
        ["linear_x", "q_proj"],
        ["share_prefixes", "drop_rows"],
    ),
}
SHOTS = "Q: 1 + 1? A: 2. Q: 2 + 2? A: 4. "
ALONE = ("Q: 3?", "Q: is 7 prime? xxxxxxxxx", "Q: and what of eleven?", "zz")
PROMPTS = (*(SHOTS + prompt for prompt in ALONE), *ALONE)
ANSWERS = ("six", "yes it is", "no", "what") * 2
WEIGHTS = [0.7, -0.4]


def build(name):
    make, targets, _ = BASES[name]
    torch.manual_seed(7)
    model = make().eval()
    return model, targets


def merged_by_peft(model, folders):
    """The merge by peft alone: all adapters active, each B times its coefficient."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), folders[0], adapter_name="a0")
    wrapped.load_adapter(folders[1], adapter_name="a1")
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            for index, weight in enumerate(WEIGHTS):
                if f"lora_B.a{index}" in key:
                    parameter.mul_(weight)
    wrapped.base_model.set_adapter(["a0", "a1"])
    return wrapped.eval()


@torch.no_grad()
def plain_logits(model, tokens):
    for module in model.modules():  # a RoPE that grew with an earlier question
        if hasattr(module, "max_seq_len_cached"):
            reset_rope(module)
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


def plain_log_probability(model, tokenizer, prompt, answer):
    prompt_tokens = tokenizer(prompt)["input_ids"]
    answer_tokens = tokenizer(" " + answer)["input_ids"]
    logits = plain_logits(model, [*prompt_tokens, *answer_tokens]).log_softmax(-1)
    total = 0.0
    for index, token in enumerate(answer_tokens):
        total += float(logits[len(prompt_tokens) - 1 + index, token])
    return total / len(answer_tokens)


def plain_text(model, tokenizer, prompt, count):
    tokens = tokenizer(prompt)["input_ids"]
    reply = []
    for _ in range(count):
        token = int(plain_logits(model, tokens + reply)[-1].argmax())
        if token == 0:
            break
        reply.append(token)
    return tokenizer.decode(reply, skip_special_tokens=True)


@pytest.fixture
def make_folders(make_adapter):
    def make(model, targets):
        folders = []
        for seed in range(2):
            own = copy.deepcopy(model)
            folders.append(make_adapter(str(seed), own, seed=seed, target_modules=targets))
        return folders

    return make


def gold_task():
    examples = []
    for index, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        examples.append(Example(str(index), prompt, answer))
    return Task("gold", "1", "gold_log_probability", tuple(examples))


@pytest.mark.parametrize("name", list(BASES))
def test_scores_and_texts_are_those_of_plain_passes(name, make_folders, tokenizer):
    model, targets = build(name)
    folders = make_folders(model, targets)
    truth = merged_by_peft(model, folders)
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        expected.append(plain_log_probability(truth, tokenizer, prompt, answer))
    texts = [plain_text(truth, tokenizer, prompt, 5) for prompt in PROMPTS]
    for mode in ("unmerged", "merged"):
        problem = LoRAMergeProblem(
            copy.deepcopy(model), folders, [gold_task()], tokenizer=tokenizer, mode=mode
        )
        if BASES[name][2] is not None:
            assert problem.capabilities.switched_off == BASES[name][2]
        found = problem.score_tasks(torch.tensor(WEIGHTS))["gold"]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-4)
    tokens = [problem.language_model.prompt_tokens(prompt) for prompt in PROMPTS]
    population = torch.tensor([WEIGHTS])
    from evox_evogm.problems.adapters.merging import merged

    with merged(problem.language_model.model, problem.stacked, population):
        assert problem.language_model.generate(tokens, 5) == texts


@pytest.mark.parametrize("where", ["model", "forward", "layers"])
def test_a_base_compiled_in_place_sees_its_experts(where, make_folders, tokenizer):
    model, targets = build("llama")
    folders = make_folders(model, targets)
    settings = {"tokenizer": tokenizer, "mode": "unmerged"}
    plain = LoRAMergeProblem(copy.deepcopy(model), folders, [gold_task()], **settings)
    pop = torch.tensor([WEIGHTS, [0.0, 1.0]])
    expected = plain.evaluate(pop)
    if where == "model":
        model.compile(backend="eager")
    elif where == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        for layer in model.model.layers:
            layer.compile(backend="eager")
    model(input_ids=torch.tensor([[1, 2, 3]]))
    compiled = LoRAMergeProblem(model, folders, [gold_task()], **settings)
    assert any("compiled in place" in note for note in compiled.capabilities.notes)
    torch.testing.assert_close(compiled.evaluate(pop), expected)


class Calls(torch.nn.Module):
    """A projection inside another module, called as it should be."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden)


class MixesRows(Calls):
    """What a row gets depends on the other rows of its pass; a row alone is as it should be."""

    def forward(self, hidden):
        output = self.inner(hidden)
        return output + 0.1 * (output - output.mean(0, keepdim=True))


class SequenceFirst(Calls):
    """The projection gets (C, N, D), so that no one can tell which row belongs to whom."""

    def forward(self, hidden):
        return self.inner(hidden.transpose(0, 1)).transpose(0, 1)


class ReadsTheWeight(Calls):
    """The projection is never called, so hooks on it have no effect."""

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.inner.weight)


class KeepsItsWeight(Calls):
    """Whatever becomes of the weight, the one from the beginning is used."""

    def __init__(self, inner):
        super().__init__(inner)
        self.register_buffer("kept", inner.weight.detach().clone())

    def forward(self, hidden):
        changed = torch.nn.functional.linear(hidden, self.inner.weight)
        kept = torch.nn.functional.linear(hidden, self.kept)
        return self.inner(hidden) - changed + kept


class TupleLinear(torch.nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden), None


class GivesTuples(Calls):
    """The projection gives a tuple, to which hooks cannot add."""

    def __init__(self, inner):
        super().__init__(inner)
        self.inner.__class__ = TupleLinear

    def forward(self, hidden):
        return self.inner(hidden)[0]


# What each kind of projection makes the probe switch off.
MISBEHAVING = {
    MixesRows: ["pad_rows", "pad_cached_rows", "mix_candidates", "batch_rows"],
    SequenceFirst: ["mix_candidates", "share_layers"],
    ReadsTheWeight: ["unmerged"],
    KeepsItsWeight: ["merged"],
    GivesTuples: ["unmerged"],
}


def with_projections(kind):
    model = build_model()
    for layer in model.model.layers:
        layer.self_attn.q_proj = kind(layer.self_attn.q_proj)
    return model


@pytest.mark.parametrize("kind", MISBEHAVING)
def test_what_a_base_gives_wrongly_is_switched_off(kind, make_folders, tokenizer):
    well_behaved = with_projections(Calls)
    folders = make_folders(well_behaved, ["inner"])
    expected = []
    for truth in (merged_by_peft(well_behaved, folders), well_behaved):
        row = []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            row.append(plain_log_probability(truth, tokenizer, prompt, answer))
        expected.append(row)
    for mode in ("unmerged", "merged"):
        settings = {"tokenizer": tokenizer, "mode": mode}
        arguments = (with_projections(kind), folders, [gold_task()])
        if mode in MISBEHAVING[kind]:
            with pytest.raises(ValueError, match=f"works on this base, found '{mode}'"):
                LoRAMergeProblem(*arguments, **settings)
            continue
        problem = LoRAMergeProblem(*arguments, **settings)
        assert problem.capabilities.switched_off == MISBEHAVING[kind]
        found = problem.score_together(torch.tensor([WEIGHTS, [0.0, 0.0]]))["gold"]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-4)


def test_modes_are_compared_part_by_part_where_a_copy_of_all_weights_is_too_large(
    make_folders, tokenizer, monkeypatch
):
    parts = []
    make = WeightMerger.__init__

    def recorded(merger, model, modules):
        parts.append(sorted(modules))
        make(merger, model, modules)

    monkeypatch.setattr(WeightMerger, "__init__", recorded)
    settings = {"tokenizer": tokenizer, "max_memory": 1}
    model = with_projections(Calls)
    folders = make_folders(model, ["inner", "v_proj"])
    problem = LoRAMergeProblem(model, folders, [gold_task()], **settings)
    assert parts == [[name] for name in sorted(problem.stacked)] and len(parts) == 4
    assert problem.capabilities.switched_off == []
    wrong = with_projections(Calls)
    second = wrong.model.layers[1].self_attn
    second.q_proj = ReadsTheWeight(second.q_proj.inner)
    with pytest.raises(ValueError, match="hooks give logits .* a copy of the weights takes more"):
        LoRAMergeProblem(wrong, folders, [gold_task()], **settings)


def test_a_cache_whose_rows_get_other_experts_when_some_leave_is_switched_off(
    make_folders, tokenizer, monkeypatch
):
    """The base alone gives the same whoever its rows belong to."""
    model, targets = build("llama")
    folders = make_folders(model, targets)
    drop = DecodingBatch._drop_all_but

    def forget_whose_they_are(batch, places):
        candidates = batch.candidates
        drop(batch, places)
        batch.candidates = candidates[: len(places)]

    monkeypatch.setattr(DecodingBatch, "_drop_all_but", forget_whose_they_are)
    problem = LoRAMergeProblem(model, folders, [gold_task()], tokenizer=tokenizer)
    assert problem.capabilities.switched_off == ["share_prefixes", "drop_rows"]
    (note,) = problem.capabilities.notes
    assert note.startswith("decoding of two candidates in one batch: logits differ by")


def test_an_encoder_is_refused_in_one_sentence(make_folders, tokenizer):
    sizes = {name: SIZES[name] for name in list(SIZES)[:5]}
    torch.manual_seed(7)
    model = hf.BertLMHeadModel(hf.BertConfig(**sizes, initializer_range=0.3)).eval()
    folders = make_folders(model, ["query"])
    with pytest.raises(ValueError, match="expected a causal language model, found BertLMHead"):
        LoRAMergeProblem(model, folders, [gold_task()], tokenizer=tokenizer)


def test_a_plain_base_has_everything_on_and_the_log_says_so(make_folders, tokenizer, caplog):
    model, targets = build("llama")
    folders = make_folders(model, targets)
    with caplog.at_level(logging.INFO, "evox_evogm.problems.inference.probe"):
        problem = LoRAMergeProblem(model, folders, [gold_task()], tokenizer=tokenizer)
    assert problem.capabilities.switched_off == [] and problem.capabilities.notes == ()
    assert caplog.messages == ["base: batches, caches and merges agree with plain passes"]


def test_the_probe_leaves_the_model_as_it_was(make_folders, tokenizer):
    model, targets = build("qwen3_next")
    folders = make_folders(model, targets)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    LoRAMergeProblem(model, folders, [gold_task()], tokenizer=tokenizer)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert not any(module._forward_hooks for module in model.modules())


def test_rows_that_are_compared_come_from_the_shortest_and_the_longest_prompt():
    prompts = [(1, 2, 3), tuple(range(10, 60)), tuple(range(100, 300))]
    short, other, long, fork = rows_of(prompts, [120], build_model())
    assert short[:3] == (1, 2, 3) and len(short) == len(other) and short != other
    assert long == tuple(range(100, 228))  # eight tokens more than the window
    assert len(fork) == len(long) - 2 and fork[:120] == long[:120] and fork[120] != long[120]


def test_rounding_is_measured_by_other_roundings():
    model = build_model()
    tokens = [5, 6, 7, 8]
    expected = plain_logits(model, tokens)
    with rounded_differently(model):
        moved = plain_logits(model, tokens)
    assert 1e-8 < difference(moved, expected) < 1e-5
    assert difference(expected, expected) == 0.0
    assert build_tokenizer().eos_token_id == 0

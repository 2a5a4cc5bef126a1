"""An encoder-decoder answers as plain transformers does, for one model and for populations."""

import pytest
import torch
from builders_t5 import build_t5, build_t5_tokenizer, save_t5

from evox_evogm.problems.inference.base_model import load_base
from evox_evogm.problems.inference.encoder_decoder import EncoderDecoderModel
from evox_evogm.problems.inference.kinds_of_base import make_language_model, start_token_of

pytestmark = pytest.mark.language_model
CPU = torch.device("cpu")
PROMPTS = [
    "ab cd",
    "reverse 1 2 3 4 5 6 7 8",
    "x",
    "What is 3 and 4? Answer:",
    "Hello you",
    "9 8 7",
]
ANSWERS = ["yes", "no it is", "7", "seven", "4 4", "a"]


def language_model(model, **options):
    return make_language_model(model, build_t5_tokenizer(), **options)


@pytest.fixture(params=[True, False], ids=["flan", "first"])
def t5(request):
    return build_t5(flan=request.param)


@pytest.mark.parametrize("batch_tokens", [2048, 1])
def test_greedy_answers_are_those_of_generate(t5, batch_tokens):
    own = language_model(t5, batch_tokens=batch_tokens)
    tokens = [own.prompt_tokens(prompt) for prompt in PROMPTS]
    expected = []
    for prompt in PROMPTS:
        given = own.tokenizer(prompt, return_tensors="pt")
        answer = t5.generate(**given, max_new_tokens=9, do_sample=False, num_beams=1)[0]
        expected.append(own.tokenizer.decode(answer, skip_special_tokens=True))
    assert own.generate(tokens, 9) == expected
    assert len(set(expected)) > 1
    assert own.generate(tokens, 9, should_stop=lambda _, text: True) == [
        text[:1] for text in expected
    ]


def test_answers_go_on_from_tokens_that_are_known():
    own = language_model(build_t5())
    tokens = [own.prompt_tokens(prompt) for prompt in PROMPTS]
    whole = own.generate(tokens, 8)
    begun = []
    for place, text in enumerate(whole):
        known = own.prompts.reply("", text)[1:] if text.strip() else ()  # without the first blank
        begun.append(known[: place % 3])
    assert own.generate(tokens, 8, forced_tokens=begun) == whole


@pytest.mark.parametrize("batch_tokens", [2048, 30])
def test_likelihoods_are_the_losses_of_transformers(t5, batch_tokens):
    own = language_model(t5, batch_tokens=batch_tokens)
    requests = []
    for prompt in PROMPTS:
        for answer in ANSWERS:
            requests.append(own.request(prompt, answer))
    found = own.likelihoods(requests)
    for row, (prompt, answer) in enumerate(requests):
        labels = torch.tensor([answer])
        out = t5(input_ids=torch.tensor([prompt]), labels=labels)
        assert float(found.log_probability[row]) == pytest.approx(
            -float(out.loss) * len(answer), rel=1e-4
        )
        right = out.logits[0].gather(-1, labels[0][:, None])[:, 0]
        others = out.logits[0].scatter(-1, labels[0][:, None], -torch.inf).amax(-1)
        assert float(found.margin[row]) == pytest.approx(float((right - others).min()), abs=1e-4)


def test_the_answer_is_tokenized_as_labels_are_and_the_prompt_with_its_end():
    own = language_model(build_t5())
    prompt, answer = own.request("ab cd", "no")
    tokenizer = build_t5_tokenizer()
    assert list(prompt) == tokenizer("ab cd").input_ids
    assert prompt[-1] == tokenizer.eos_token_id
    assert [*answer, tokenizer.eos_token_id] == tokenizer(text_target="no").input_ids
    with pytest.raises(ValueError, match="chat: expected plain prompts for an encoder-decoder"):
        own.prompt_tokens("ab", chat=True)


def test_first_tokens_are_scored_by_one_pass_per_prompt():
    model = build_t5()
    own = language_model(model)
    tokens = [own.prompt_tokens(prompt) for prompt in PROMPTS]
    found = own.next_token_log_probabilities(tokens, [[5, 9, 20]] * len(tokens))
    for prompt, scores in zip(tokens, found, strict=True):
        start = torch.tensor([[0]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0, 0]
        torch.testing.assert_close(scores, logits.log_softmax(-1)[[5, 9, 20]], rtol=1e-4, atol=1e-4)


def test_the_encoder_reads_a_prompt_once_for_all_its_answers():
    model = build_t5()
    own = language_model(model)
    read = []
    model.encoder.register_forward_pre_hook(
        lambda _, __, given: read.append(len(given["input_ids"])), with_kwargs=True
    )
    prompt = PROMPTS[0]
    requests = [own.request(prompt, answer) for answer in ANSWERS]
    own.likelihoods(requests)
    assert sum(read) == 1
    read.clear()
    own.likelihoods(requests * 2, [0] * len(ANSWERS) + [1] * len(ANSWERS))
    assert sum(read) == 2  # once for each of two candidates


def test_a_base_is_loaded_with_its_own_output_layer(tmp_path, t5):
    folder = save_t5(tmp_path, t5)
    loaded, tokenizer = load_base(folder, dtype=torch.float32, device=CPU)
    own = make_language_model(loaded, tokenizer)
    assert isinstance(own, EncoderDecoderModel)
    tokens = own.prompt_tokens("ab cd")
    inputs = torch.tensor([[0, 5, 6]])
    given = {"input_ids": torch.tensor([tokens]), "decoder_input_ids": inputs}
    torch.testing.assert_close(loaded(**given).logits, t5(**given).logits)


def test_what_cannot_be_used_is_refused(tmp_path):
    import transformers as hf

    model = build_t5()
    folder = save_t5(tmp_path / "t5", model)
    with pytest.raises(
        ValueError, match="expected bfloat16 or float32 .*, found float16, in which"
    ):
        load_base(folder, dtype=torch.float16, device=CPU)
    with pytest.raises(ValueError, match="found float16"):
        language_model(build_t5().half())
    forced = {"forced_bos_token_id": 5, "forced_eos_token_id": 1, "bad_words_ids": [[0]]}
    for name, value in forced.items():
        setattr(model.generation_config, name, value)
        with pytest.raises(ValueError, match=f"found {name} in its settings"):
            language_model(model)
        setattr(model.generation_config, name, None)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    hf.WhisperConfig(**sizes, vocab_size=50, pad_token_id=0).save_pretrained(tmp_path / "speech")
    with pytest.raises(ValueError, match="encoder-decoder of texts such as T5, found .*'whisper'"):
        load_base(tmp_path / "speech", dtype=torch.float32, device=CPU)


def test_the_start_token_is_that_of_generate():
    model = build_t5()
    assert start_token_of(model) == 0
    model.generation_config.decoder_start_token_id = 4
    assert start_token_of(model) == 4
    model.generation_config.decoder_start_token_id = None
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="expected decoder_start_token_id in the settings"):
        start_token_of(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MT5", "UMT5", "LongT5"])
def test_relatives_of_t5_answer_as_by_generate(kind):
    import transformers as hf

    config = {**build_t5().config.to_dict(), "encoder_attention_type": "local"}
    del config["model_type"], config["architectures"]
    torch.manual_seed(0)
    made = getattr(hf, f"{kind}ForConditionalGeneration")(getattr(hf, f"{kind}Config")(**config))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith(".q.weight"):
                weight *= 8
    own = language_model(made.eval())
    tokens = [own.prompt_tokens(prompt) for prompt in PROMPTS]
    expected = []
    for prompt in PROMPTS:
        given = own.tokenizer(prompt, return_tensors="pt")
        answer = made.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1)[0]
        expected.append(own.tokenizer.decode(answer, skip_special_tokens=True))
    assert own.generate(tokens, 8) == expected
    assert len(set(expected)) > 1

"""First tokens that requests share run once, which changes no score and no text."""

import pytest
import torch
from builders import TARGETS, build_model, record_passes

from evox_evogm.problems import Example, Task
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prefix_cache import may_pad_after_prefix
from evox_evogm.problems.tasks.choices import choice_log_probabilities
from evox_evogm.problems.tasks.exact_match import exact_match, generated_match

pytestmark = pytest.mark.language_model

SHOTS = "Question: 1 + 1 is?\nAnswer: 2\n\nQuestion: 2 + 2 is?\nAnswer: 4\n\n"
QUESTIONS = [
    "Question: 3 + 3 is?\nAnswer:",
    "Question: is 7 prime?\nAnswer:",
    "Question: zz?\nAnswer:",
]


@pytest.mark.parametrize("architecture", list(TARGETS))
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_sharing_prefixes_changes_no_score(architecture, batch_tokens, tokenizer):
    choices = (("A", "yes"), ("B", "not at all"), ("C", "12"))
    questions = []
    shots = []
    for index, question in enumerate(QUESTIONS):
        questions.append(Example(str(index), SHOTS + question, "ABC"[index], choices))
        shots.append(Example(str(index), SHOTS + question, "12"))
    likelihood = Task("a", "1", "choice_likelihood", tuple(questions), continuation="text")
    decoded = Task("b", "1", "exact_match", tuple(shots), max_new_tokens=4)

    def score(share_prefixes):
        """The scores, and the number of tokens that passes ran for them."""
        scorer = LanguageModel(
            build_model(architecture),
            tokenizer,
            batch_tokens=batch_tokens,
            share_prefixes=share_prefixes,
        )
        passes = record_passes(scorer)
        log_probabilities = torch.stack(choice_log_probabilities(likelihood, scorer))
        exact = exact_match(decoded, scorer)
        generated = generated_match(decoded, scorer)
        tokens = sum(rows * width for rows, width in passes)
        prompts = [scorer.prompt_tokens(example.prompt) for example in shots]
        return log_probabilities, exact, generated, scorer.generate(prompts, 4), tokens

    shared = score(True)
    alone = score(False)
    torch.testing.assert_close(shared[0], alone[0], rtol=0, atol=1e-4)
    assert torch.equal(shared[1], alone[1]) and torch.equal(shared[2], alone[2])
    assert shared[3] == alone[3]
    if batch_tokens == 4096:
        assert shared[4] < 0.6 * alone[4]


def test_texts_of_shared_prefixes_are_those_of_single_prompts(tokenizer):
    scorer = LanguageModel(build_model(), tokenizer)
    prompts = [scorer.prompt_tokens(SHOTS + question) for question in QUESTIONS]
    texts = []
    for prompt in prompts:
        texts += scorer.generate([prompt], 4)
    assert scorer.generate(prompts, 4) == texts


@pytest.mark.parametrize("window", [100, 140, 400])
def test_sliding_windows_do_not_see_padding_between_a_prefix_and_the_rest(tokenizer, window):
    import transformers as hf

    torch.manual_seed(7)
    config = hf.MistralConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=257,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.3,
        sliding_window=window,
    )
    model = hf.MistralForCausalLM(config).eval()
    scorer = LanguageModel(model, tokenizer)
    prompts = [scorer.prompt_tokens(SHOTS[:60] + question) for question in ("a", *QUESTIONS)]
    expected = []
    for prompt in prompts:
        reply = model.generate(
            torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=0
        )
        expected.append(tokenizer.decode(reply[0, len(prompt) :], skip_special_tokens=True))
    assert scorer.generate(prompts, 30) == expected
    longest = max(len(prompt) for prompt in prompts)
    assert may_pad_after_prefix(model, longest, 30) == (window == 400)

"""A padding token that only the adapter has is left out; any other difference is refused."""

import json

import pytest
import torch
from builders import build_model, build_tokenizer
from other_bases import logits_of, peft_logits
from sick_adapters import fit_folders, load_experts

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.stacked_modules import stack_experts

VOCABULARY = ["embed_tokens", "lm_head"]


def grown_model(rows=258, **changes):
    """The base with more rows in its embedding and its output layer."""
    model = build_model(**changes)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def tokenizer_with(*tokens, pad_token=None):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(list(tokens))
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    return tokenizer


def logits_without_padding(folder, tokenizer=None):
    model = build_model()
    experts = load_experts([folder], model, tokenizer)
    modules = stack_experts(experts, torch.float32, torch.device("cpu"))
    with merged(model, modules, torch.ones(1)):
        return logits_of(model)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", *VOCABULARY]])
def test_copies_of_the_bases_embeddings_are_left_unread(make_adapter, tokenizer, targets):
    """peft saves them if they are targeted, or with save_embedding_layers."""
    from peft import PeftModel

    folder = make_adapter("copies", target_modules=targets)
    wrapped = PeftModel.from_pretrained(build_model(), folder)
    wrapped.save_pretrained(folder, save_embedding_layers=True)
    fit = fit_folders([folder], build_model(), tokenizer)
    assert set(fit.experts[0].base_copies) == {"model.embed_tokens", "lm_head"}
    assert fit.notes == []
    expected = peft_logits(build_model(), folder)
    torch.testing.assert_close(logits_without_padding(folder), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", *VOCABULARY]])
@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_one_more_row_for_a_padding_token_is_left_out(make_adapter, targets, with_tokenizer):
    """Beside plain peft on a base that was resized in the same way, whose last logit is cut off."""
    from peft import PeftModel

    folder = make_adapter("padded", grown_model(), target_modules=targets)
    wrapped = PeftModel.from_pretrained(grown_model(), folder)
    wrapped.save_pretrained(folder, save_embedding_layers=True)
    if with_tokenizer:
        tokenizer_with(pad_token="<pad>").save_pretrained(folder)
    expected = peft_logits(grown_model(), folder)[..., :257]
    found = logits_without_padding(folder, build_tokenizer())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (note,) = fit_folders([folder], build_model(), build_tokenizer()).notes
    assert note.endswith("left out its padding token, which the base does not have")


def test_more_rows_are_left_out_where_the_tokenizer_has_one_token_for_padding(make_adapter):
    """Embeddings are resized to a multiple of 8."""
    folder = make_adapter("padded", grown_model(264), target_modules=VOCABULARY)
    with pytest.raises(ValueError, match="its vocabulary differs"):
        load_experts([folder], build_model(), build_tokenizer())
    tokenizer_with(pad_token="<pad>").save_pretrained(folder)
    (expert,) = load_experts([folder], build_model(), build_tokenizer())
    assert expert.modules["model.embed_tokens"].a.shape == (4, 257)
    assert expert.modules["lm_head"].b.shape == (257, 4)


@pytest.mark.parametrize("form", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_padding_token_may_stand_in_either_file(make_adapter, form):
    folder = make_adapter("padded")
    tokenizer_with(pad_token="<pad>").save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / form).write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    assert load_experts([folder], build_model(), build_tokenizer())


@pytest.mark.parametrize(
    ("tokenizer", "differing"),
    [
        (tokenizer_with("<more>"), 1),
        (tokenizer_with("<more>", pad_token="<pad>"), 2),
        (tokenizer_with("<more>", pad_token="<end>"), 1),
    ],
)
def test_tokens_that_do_not_pad_are_refused(make_adapter, tokenizer, differing):
    folder = make_adapter("more")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"a tokenizer that differs in {differing} tokens"):
        load_experts([folder], build_model(), build_tokenizer())


@pytest.mark.parametrize("rows", [257, 258])
def test_a_copy_of_other_weights_is_refused(make_adapter, edit_tensors, rows):
    folder = make_adapter("retrained", target_modules=["q_proj"])
    copied = grown_model(rows).get_input_embeddings().weight.detach().clone()
    copied[3] += 0.1

    def add_copy(tensors):
        return tensors | {"base_model.model.model.embed_tokens.weight": copied}

    edit_tensors(folder, add_copy)
    message = "expected the saved copy of model.embed_tokens to equal the base, found other weights"
    with pytest.raises(ValueError, match=message):
        load_experts([folder], build_model())


@pytest.mark.parametrize("layer", ["nothing", "model.layers.0"])
def test_a_copy_of_no_layer_is_refused(make_adapter, edit_tensors, layer):
    folder = make_adapter("unknown")
    key = f"base_model.model.{layer}.weight"
    edit_tensors(folder, lambda tensors: tensors | {key: torch.ones(2, 2)})
    with pytest.raises(ValueError, match=f"expected the saved copy of {layer} to equal the base"):
        load_experts([folder], build_model())

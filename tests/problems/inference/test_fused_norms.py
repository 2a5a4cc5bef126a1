"""RMSNorms of one kernel: which modules they may stand in for, and that they compute the same."""

import pytest
import torch
import transformers
from builders import build_model, build_tokenizer

from evox_evogm.problems.inference import fused_norms as module_under_test
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.causal_probe import CausalProbe
from evox_evogm.problems.inference.fused_norms import (
    as_written_out_norm,
    find_written_out_norms,
    fused_norms,
)
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.probe import probe_base

WIDTH = 48


def norm_of(architecture, name):
    """A norm of transformers with weights that are neither 0 nor 1."""
    holder = getattr(transformers.models, architecture)
    norm = getattr(getattr(holder, f"modeling_{architecture}"), name)(WIDTH)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm.requires_grad_(False)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", "LlamaRMSNorm"),
        ("qwen2", "Qwen2RMSNorm"),
        ("qwen3", "Qwen3RMSNorm"),
        ("mistral", "MistralRMSNorm"),
        ("phi3", "Phi3RMSNorm"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_computes_the_same_as_one_kernel(architecture, name, dtype):
    norm = norm_of(architecture, name).to(dtype)
    given = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = as_written_out_norm(norm)
    with fused_norms([found]):
        assert "forward" in norm.__dict__
        fused = norm(given)
    assert "forward" not in norm.__dict__
    exact = given.double() / (given.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    exact *= norm.weight.double()
    unit = torch.finfo(dtype).eps * exact.abs() + 1e-7
    assert fused.dtype == dtype
    assert ((fused.double() - exact).abs() <= 2 * unit).all()
    # One rounding in place of two: at no number further from the exact one by more than rounding.
    assert ((norm(given).double() - exact).abs() <= 3 * unit).all()


def test_a_norm_of_other_numbers_stays_as_it_is():
    assert as_written_out_norm(norm_of("gemma2", "Gemma2RMSNorm")) is None  # of 1 + weight
    assert as_written_out_norm(norm_of("t5", "T5LayerNorm")) is None
    assert as_written_out_norm(torch.nn.LayerNorm(WIDTH)) is None
    assert as_written_out_norm(torch.nn.RMSNorm(WIDTH)) is None  # one kernel already
    norm = norm_of("llama", "LlamaRMSNorm")
    norm.eps = 1e-6  # not what it uses
    norm.variance_epsilon = 1e-5
    assert as_written_out_norm(norm).epsilon == 1e-5

    class WithAnother(type(norm)):
        """Its epsilon is named, and not used."""

        def forward(self, hidden_states):
            return self.weight * hidden_states / hidden_states.square().mean(-1, True).sqrt()

    other = WithAnother(WIDTH)
    other.__class__.__name__ = "OtherRMSNorm"
    assert as_written_out_norm(other) is None


def test_a_norm_that_needs_more_than_its_input_stays_as_it_is():
    class ResidualRMSNorm(torch.nn.Module):
        """As those of bases with code of their own."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(WIDTH))
            self.eps = 1e-6

        def forward(self, hidden_states, residual):
            return hidden_states + residual

    assert as_written_out_norm(ResidualRMSNorm()) is None


def test_a_norm_that_somebody_else_has_changed_stays_so():
    norm = norm_of("llama", "LlamaRMSNorm")
    found = as_written_out_norm(norm)
    norm.forward = lambda given: given + 1
    with fused_norms([found]):
        assert norm(torch.ones(WIDTH)).eq(2).all()
    assert norm(torch.ones(WIDTH)).eq(2).all()


def test_numbers_of_another_dtype_go_through_the_module_itself():
    norm = norm_of("llama", "LlamaRMSNorm").to(torch.bfloat16)
    given = torch.randn(3, WIDTH)
    with fused_norms([as_written_out_norm(norm)]):
        assert torch.equal(norm(given), type(norm).forward(norm, given))


def test_on_a_cpu_no_norm_is_changed():
    model = build_model()
    assert find_written_out_norms(model) == []
    assert not LanguageModel(model, build_tokenizer()).capabilities.fused_norms


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Finds norms on the CPU too, so that passes can be compared here."""

    def find(model):
        found = [as_written_out_norm(module) for module in model.modules()]
        return [norm for norm in found if norm is not None]

    monkeypatch.setattr("evox_evogm.problems.inference.forward.find_written_out_norms", find)
    return find


def test_the_probe_lets_norms_that_agree_be_one_kernel(as_on_a_gpu):
    model = LanguageModel(build_model(), build_tokenizer())
    assert model.forward.written_out_norms == []  # nobody has looked
    found = probe_base(model, {}, 0, [(1, 2, 3), (4, 5, 6, 7, 8)])
    assert len(model.forward.written_out_norms) == len(as_on_a_gpu(model.model)) > 0
    assert found.fused_norms and not found.notes and "fused_norms" not in found.switched_off
    model.rely_on(found)
    requests = [((1, 2, 3), (4, 5)), ((3, 1), (2, 2, 2))]
    fused = model.likelihoods(requests)
    model.rely_on(found.without("fused_norms"))
    written_out = model.likelihoods(requests)
    torch.testing.assert_close(fused.log_probability, written_out.log_probability)
    assert torch.equal(fused.missed_token, written_out.missed_token)


def test_norms_that_leave_nothing_for_other_differences_are_switched_off_first(
    as_on_a_gpu, monkeypatch
):
    """As where rounding once in place of twice takes up most of what rounding may move."""
    model = LanguageModel(build_model(), build_tokenizer())
    asked = CausalProbe._apart_in_pass

    def apart(probe, tokens, able):
        together = len(tokens) > 1 and able.fused_norms
        return 1.0 if together else asked(probe, tokens, able)

    monkeypatch.setattr(CausalProbe, "_apart_in_pass", apart)
    found = probe_base(model, {}, 0, [(1, 2, 3), (4, 5, 6, 7, 8)])
    assert not found.fused_norms and not found.switched_off
    assert found.notes[0].endswith("off: fused_norms")


def test_the_probe_switches_off_what_differs(as_on_a_gpu, monkeypatch):
    def wrong(given, shape, weight, epsilon):
        return torch.nn.functional.rms_norm(given, shape, weight, epsilon) * 1.01

    model = LanguageModel(build_model(), build_tokenizer())
    assert model.forward.find_norms()
    monkeypatch.setattr(module_under_test, "rms_norm", wrong)
    found = probe_base(model, {}, 0, [(1, 2, 3), (4, 5, 6, 7, 8)])
    assert not found.fused_norms and found.batch_rows and found.cache
    assert found.notes[0].startswith("RMSNorms of one kernel: logits differ by")


def test_derivatives_go_through_the_modules_themselves(as_on_a_gpu, monkeypatch):
    """What is computed again on the way back has to be what was computed on the way there."""
    model = LanguageModel(build_model(), build_tokenizer())
    model.rely_on(Capabilities(fused_norms=True))
    assert model.forward.fuse_norms
    monkeypatch.setattr(module_under_test, "rms_norm", lambda *_: pytest.fail("it was fused"))
    tokens = torch.tensor([[1, 2, 3]])
    with torch.enable_grad():
        model.forward([0], tokens, torch.ones_like(tokens), [1])

"""A pretend accelerator for machines that have none: it shows code that mixes devices.

A tensor of the device "pretend" holds a tensor of the CPU, which does the arithmetic. What fails on
a GPU fails here too: an operation on tensors of both devices, `.numpy()`, and random numbers from a
generator of the other device. Speed, memory and kernels are those of the CPU.

    with pretend_accelerator() as device:
        model.to(device)

torch has one place for a backend from outside (`PrivateUse1`). It is taken for good when the block
is first entered; importing this file does nothing.
"""

from contextlib import contextmanager
from functools import cache
from unittest import mock

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
COPIES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
JOINING = {"aten::cat", "aten::stack"}  # to which a scalar of the CPU is no number, but a tensor
CpuGenerator = torch.Generator


class PretendTensor(torch.Tensor):
    """A tensor of the pretend device.

    :param on_cpu: the tensor that holds its values.
    """

    @staticmethod
    def __new__(cls, on_cpu):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.on_cpu = on_cpu
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.on_cpu = value.on_cpu

    def data_ptr(self):  # two names of one weight have the same
        return self.on_cpu.data_ptr()

    def tolist(self):
        return self.on_cpu.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy

    def __repr__(self, *, tensor_contents=None):
        return f"PretendTensor({self.on_cpu!r})"


class PretendGenerator(CpuGenerator):
    """A generator of either device. Its numbers are those that a generator of the CPU gives."""

    of_pretend: set[int] = set()  # addresses; operators get other Python objects for a generator

    def __new__(cls, device="cpu"):
        generator = CpuGenerator.__new__(cls, "cpu" if is_pretend(device) else device)
        PretendGenerator.of_pretend.discard(generator._cdata)  # of one that is gone
        if is_pretend(device):
            PretendGenerator.of_pretend.add(generator._cdata)
        return generator


class PretendMode(TorchDispatchMode):
    """Inside the block operators that make tensors on the pretend device are run here."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_pretend(kwargs.get("device")) or pretend_tensors((args, kwargs)):
            return run(operator, args, kwargs)
        check_generator(kwargs.get("generator"), on_pretend=False)
        return operator(*args, **kwargs)


class Backend:
    """The functions that torch calls on the module of a device."""

    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    set_device = staticmethod(lambda device: None)
    synchronize = staticmethod(lambda device=None: None)
    empty_cache = staticmethod(lambda: None)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    _is_in_bad_fork = staticmethod(lambda: False)
    _lazy_init = staticmethod(lambda: None)


@contextmanager
def pretend_accelerator():
    """Inside the block torch has a pretend accelerator.

    :return: its device.
    """
    register_backend()
    with PretendMode(), mock.patch.object(torch, "Generator", PretendGenerator):
        yield torch.device(NAME, 0)


@cache
def register_backend():
    """Have torch know the device, and the few kernels that it calls without Python.

    :return: the library of the kernels, which lose their registration when it is deleted.
    """
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    library.impl("empty_strided", empty_strided)
    library.impl("empty.memory_format", empty)
    library.impl("_copy_from", copy_from)
    return library


def empty_strided(size, stride, *, dtype=None, **_):
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def empty(size, *, dtype=None, **_):
    return PretendTensor(torch.empty(size, dtype=dtype, device="cpu"))


def copy_from(source, target, non_blocking=False):
    inner(target).copy_(inner(source))
    return target


def is_pretend(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def pretend_tensors(values) -> list[PretendTensor]:
    """All tensors of the pretend device in nested arguments."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, PretendTensor)]


def inner(value):
    """The tensor of the CPU in a tensor of the pretend device; of anything else itself."""
    return value.on_cpu if isinstance(value, PretendTensor) else value


def run(operator, args, kwargs):
    """Run an operator that has to do with the pretend device, on the CPU.

    :raises RuntimeError: if it would fail on a GPU, because it mixes devices.
    """
    name = operator._schema.name
    if operator.namespace != "aten":
        return run_parts(name, args, kwargs)
    if name == "aten::to":  # inside operators that are written in Python it comes whole
        with PretendMode():
            return operator.decompose(*args, **kwargs)
    tensors = pretend_tensors((args, kwargs))
    device = kwargs.get("device")
    on_pretend = bool(tensors) if device is None else is_pretend(device)
    if name not in COPIES:
        check_devices(name, args, kwargs)
        check_generator(kwargs.get("generator"), on_pretend)
    inner_args, inner_kwargs = pytree.tree_map(inner, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    result = operator(*inner_args, **inner_kwargs)
    if name in COPIES and name != "aten::_to_copy":  # these return the tensor that was written to
        return args[1] if name.startswith("aten::_copy_from") else args[0]
    if not on_pretend:
        return result
    return pytree.tree_map(lambda value: wrap(value, tensors), result)


def run_parts(name, args, kwargs):
    """Run an operator that is written in Python. Its parts are operators of torch."""
    from torch._library.custom_ops import OPDEFS

    with PretendMode():
        return OPDEFS[name]._init_fn(*args, **kwargs)


def wrap(value, tensors):
    """A result as a tensor of the pretend device.

    :param tensors: those of the arguments. An operator in place returns one of them.
    """
    if not isinstance(value, torch.Tensor):
        return value
    for tensor in tensors:
        if tensor.on_cpu is value and tensor.shape == value.shape:
            return tensor
    return PretendTensor(value)


def check_devices(name, args, kwargs):
    """Refuse tensors of both devices, with the exceptions that a GPU makes.

    - A tensor of the CPU without dimensions is a number, except where tensors are joined.
    - Indices may be on the CPU.
    """
    if name in INDEXING and isinstance(args[0], PretendTensor):
        args = (args[0], *args[2:])
    leaves = pytree.tree_leaves((args, kwargs))
    on_pretend = on_cpu = False
    for tensor in leaves:
        if isinstance(tensor, PretendTensor):
            on_pretend = True
        elif isinstance(tensor, torch.Tensor):
            on_cpu = on_cpu or tensor.dim() > 0 or name in JOINING
    if on_pretend and on_cpu:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, found {NAME}:0 and cpu (in {name})"
        )


def check_generator(generator, on_pretend: bool):
    """Refuse a generator of another device than that of the numbers."""
    if generator is None:
        return
    if (generator._cdata in PretendGenerator.of_pretend) != on_pretend:
        expected = NAME if on_pretend else "cpu"
        raise RuntimeError(f"Expected a '{expected}' device type for generator, found another")

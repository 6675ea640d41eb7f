"""Sums of clipped gradients, one picture being the unit: sum_i g_i min(1 / C, 1 / ||g_i||) with g_i the mean gradient of picture i over its K draws.

Two ways that agree to rounding: `HookSums` writes every picture's gradient down with Opacus's hooks; `GhostSums` computes norms from activations and
then the sum, in one backward pass (see `tuneleak.privacy.layers`). The mean over the K draws comes *before* the clip, in both: clipping each draw by
itself would let one picture weigh up to K C.
"""

import contextlib
import time
import warnings

import torch

from tuneleak.errors import InputError
from tuneleak.privacy import layers


def coefficients(norms, clip):
    """min(1 / C, 1 / ||g||) per picture: after it no picture's share of the sum is longer than 1."""
    return 1.0 / norms.clamp(min=clip)


def clipped_record(sums, pieces, draws, clip):
    """(list of the clipped gradients of one record, its norm `(1,)`), as `sums.clipped`, where its `draws` rows do not fit at once.

    pieces: functions as `errors_of`, of some of the rows each. Gradients are added up before the clip: one record needs no more than that.
    """
    for parameter in sums.parameters:
        parameter.grad = None  # whatever is left there would be another record's, and break the bound
    with sums.quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for errors_of in pieces:
            (errors_of(sums.network).sum() / draws).backward()
    found = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in sums.parameters]
    for parameter in sums.parameters:
        parameter.grad = None
    norms = sum(part.square().sum() for part in found).sqrt()[None]
    return [coefficients(norms, clip)[0] * part for part in found], norms


class HookSums:
    """Per-picture gradients by Opacus's `GradSampleModule` around `network`, for the parameters that require gradients."""

    def __init__(self, network, parameters):
        from opacus import GradSampleModule

        self.parameters = list(parameters)
        # Opacus reads a convolution's input as if it lay row by row; of any other layout its gradients are wrong without a word. Hooked first, so run first.
        self._laid_out = [module.register_forward_pre_hook(_row_by_row) for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
        self.network = self.module = GradSampleModule(network, batch_first=True, loss_reduction="sum", strict=False)
        wanted = {id(parameter) for parameter in self.parameters}
        self._layers = [module for module in network.modules() if {id(parameter) for parameter in module.parameters(recurse=False)} & wanted]
        for layer in self._layers:
            layer.training = True  # Opacus's hooks are silent otherwise; only layers with trained weights, so no dropout wakes up

    def per_picture(self, errors_of, pictures):
        """[(pictures, *shape)] of the parameters; `errors_of(network) -> (rows,)`, rows of one picture adjacent."""
        for parameter in self.parameters:
            parameter.grad_sample = None
        errors = errors_of(self.module)
        draws = len(errors) // pictures
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # frozen layers below the first trained one: nothing is missed
            (errors.sum() / draws).backward()
        found = []
        for parameter in self.parameters:
            sample = getattr(parameter, "grad_sample", None)
            if sample is None:
                raise InputError(
                    "a trained weight has no gradient per picture: a layer is not used, or gradient checkpointing is not the re-entrant kind that hooks need"
                )
            found.append(sample.view(pictures, draws, *parameter.shape).sum(1))
            parameter.grad_sample, parameter.grad = None, None
        return found

    def clipped(self, errors_of, pictures, clip):
        """(list of clipped sums, norms `(pictures,)`)."""
        samples = self.per_picture(errors_of, pictures)
        norms = sum(sample.flatten(1).square().sum(1) for sample in samples).sqrt()
        c = coefficients(norms, clip)
        return [torch.einsum("n,n...->...", c, sample) for sample in samples], norms

    @contextlib.contextmanager
    def quiet(self):
        """Inside, gradients are ordinary ones."""
        self.module.disable_hooks()
        try:
            yield
        finally:
            self.module.enable_hooks()

    def close(self):
        """Take the hooks out again."""
        self.module.to_standard_module()
        for handle in self._laid_out:
            handle.remove()
        for layer in self._layers:
            layer.training = False
        for parameter in self.parameters:
            for name in ("grad_sample", "_forward_counter"):
                if hasattr(parameter, name):
                    delattr(parameter, name)


def _row_by_row(module, arguments):
    return (arguments[0].contiguous(), *arguments[1:])


class GhostSums:
    """Norms without per-picture gradients, for linear, convolution, normalisation and embedding layers; others are refused."""

    def __init__(self, network, parameters):
        self.network, self.parameters = network, list(parameters)
        wanted = {id(parameter) for parameter in self.parameters}
        self.modules, held = [], set()
        for module in network.modules():
            own = {id(parameter) for parameter in module.parameters(recurse=False)} & wanted
            if own and layers.kind_of(module) is None:
                raise InputError(f"ghost norms do not know the layer {type(module).__name__}; use gradients=hooks")
            if own & held:
                raise InputError("two layers share a trained weight; its gradients per picture would be wrong")
            if own:
                self.modules.append(module)
                held |= own
        if held != wanted:
            raise InputError("a trained weight belongs to no layer of the network")
        for parameter in self.parameters:
            parameter.dp_trained = True

    def clipped(self, errors_of, pictures, clip):
        """(list of clipped sums, norms `(pictures,)`)."""
        with self._recording() as seen:
            errors = errors_of(self.network)
            (errors.sum() / (len(errors) // pictures)).backward()
        records = []
        for module in self.modules:
            if len(seen.get(module, ())) != 2:
                raise InputError(f"a trained {type(module).__name__} was not used exactly once in a pass; use gradients=hooks")
            records.append(layers.kind_of(module)(module, *seen.pop(module), pictures))
        norms, slack = sum(record.squares() for record in records).sqrt()
        c, sums = coefficients(norms + slack, clip).to(errors.dtype), {}  # what is rounded counts as part of the gradient
        for record in records:
            sums |= record.weighted(c)
        return [sums[parameter] for parameter in self.parameters], norms.to(errors.dtype)

    @contextlib.contextmanager
    def _recording(self):
        """Collect {module: [input, gradient at the output]}. No weight requires a gradient meanwhile, so that backward computes none of the unclipped sums."""
        seen, handles = {}, []

        def forward(module, arguments, output):
            if not output.requires_grad:
                output.requires_grad_()  # the first trained layers: the graph starts here
            seen.setdefault(module, []).append(arguments[0].detach())
            output.register_hook(lambda gradient: seen[module].append(gradient.detach()))

        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            handles = [module.register_forward_hook(forward) for module in self.modules]
            yield seen
        finally:
            for handle in handles:
                handle.remove()
            for parameter in self.parameters:
                parameter.requires_grad_(True)

    def quiet(self):
        """Inside, gradients are ordinary ones, as they are outside of `clipped`."""
        return contextlib.nullcontext()

    def close(self):
        """Forget the marks on the parameters."""
        for parameter in self.parameters:
            if hasattr(parameter, "dp_trained"):
                del parameter.dp_trained


KINDS = {"ghost": GhostSums, "hooks": HookSums}


def make(kind, network, parameters, gradient_checkpointing=False):
    """`GhostSums` or `HookSums` by name."""
    parameters = list(parameters)
    if kind == "ghost" and gradient_checkpointing:
        raise InputError("gradients=ghost needs every activation once; with gradient_checkpointing use hooks or auto")
    if kind == "ghost" and any(parameter.device.type == "mps" for parameter in parameters):
        raise InputError("gradients=ghost needs float64, which mps lacks; use hooks or auto, or another device")
    return KINDS[kind](network, parameters)


def fastest(network, parameters, errors_of, pictures, clip):
    """Which of the two ways takes less time for a batch of `pictures`: `ghost` or `hooks`; seconds of each beside it.

    Ghost norms save the memory of every picture's gradient and win where a picture's activations are smaller than its gradients (paper/reference/benchmarks.csv
    has attention, a LoRA and all weights of the shipped UNet). The batch should be made of noise: what is timed on private pictures may tell about them.
    A way that the network's layers do not allow, or that memory is too small for, is left out.
    """
    seconds, refused = {}, None
    for kind in KINDS:
        sums = None
        try:
            sums = make(kind, network, parameters)
            for _ in range(2):  # the first warms up
                started = time.perf_counter()
                total, _ = sums.clipped(errors_of, pictures, clip)
                float(total[0].flatten()[0])  # waits for a GPU
                seconds[kind] = time.perf_counter() - started
        except (InputError, torch.OutOfMemoryError) as error:
            seconds.pop(kind, None)
            refused = error
        finally:
            if sums is not None:
                sums.close()
    if not seconds:
        raise refused
    return min(seconds, key=seconds.get), seconds

"""LoRAs that were published as principal components of their flattened weights, as weights2weights does (Dravid et al., arXiv 2406.09413).

A folder of safetensors with `V (p, K)`, `mean (p,)`, `std (p,)` and the people's coefficients `proj (n, k)`, k <= K, and a JSON object that says where the
matrices of a LoRA lie among the p weights, in order: {tensor's name: [[elements], [rows, columns]]}, or {name: [rows, columns]}. The weights of a person are

    w = (proj V[:, :k]^T) * std + mean,

each matrix row by row. With k below the rank of the published weights that is the projection of the LoRA, not the LoRA. The publishers' files of these
names are pickles (`V.pt`, ...), which are not opened here; README says how whoever trusts them converts them.
"""

import json
import re
import shutil

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import weights
from tuneleak.models.adapter_names import Places

SETTINGS = "adapter_config.json"
AT_ONCE = 64  # people whose weights are computed together
# <module>.lora_A.weight in the spellings of peft (also with an adapter's name), diffusers and kohya's trainers
_MATRIX = re.compile(r"(.+)[._]lora[._](A|B|down|up)(?:\.[\w-]+)?\.weight")


def found_in(folder, names):
    """Whether `folder` holds principal components: their layout, or a tensor in a file of its name. names: `PrincipalComponentNames`."""
    return (folder / names.layout).is_file() or any(_alone(folder / f"{name}.safetensors", name) for name in (names.components, names.coefficients))


def _alone(path, name):
    if not path.is_file():
        return False
    with weights.opened(path) as handle:
        return name in handle.keys()  # noqa: SIM118 (safe_open is no mapping)


class PrincipalComponents:
    """The LoRAs of a folder, checked against the UNet of a base. options: `ImportWeightsOptions`; `len()`: people.

    Raises `InputError` for tensors that are absent, twice there, misshapen or not finite, for a layout that does not fit them or the base, and where
    nobody says what alpha was.
    """

    def __init__(self, folder, base, options):
        self.folder, names = folder, options.names
        if not (folder / names.layout).is_file():
            raise InputError(f"{folder} holds principal components but not {names.layout}, which says where each matrix lies in them; get it, too")
        self.layout = files.inside(folder, names.layout)
        self.matrices, length = self._matrices(files.read_object(self.layout), base)
        self.rank = next(iter(self.matrices.values()))[0][2][0]
        places = self._places(names)
        kept = self._kept(places, length, names)
        self.alpha = self._alpha(options.alpha)
        self.mean, self.deviation, self.coefficients = (self._read(places, name) for name in (names.mean, names.deviation, names.coefficients))
        if bool((self.deviation < 0).any()):
            raise InputError(f"{places[names.deviation]}: tensor {names.deviation!r} holds negative deviations; get it again")
        self.components = self._read(places, names.components, kept)

    def __len__(self):
        return len(self.coefficients)

    def loras(self, numbers):
        """`Lora` of the UNet for each of these rows of the coefficients, in order."""
        for first in range(0, len(numbers), AT_ONCE):
            rows = numbers[first : first + AT_ONCE]
            flat = (self.coefficients[rows] @ self.components.T) * self.deviation + self.mean
            for number, vector in zip(rows, flat, strict=True):
                if not bool(torch.isfinite(vector).all()):
                    raise InputError(f"{self.folder}: the weights of row {number} are too large for 32 bits; get the files again")
                pairs = {module: tuple(vector[start:stop].view(shape) for start, stop, shape in pair) for module, pair in self.matrices.items()}
                yield weights.Lora(self.rank, self.alpha, pairs)

    def check_space(self, out, people):
        """Refuse more LoRAs than the disk of `out` has room for: a few numbers per person become a whole LoRA."""
        there = next(path for path in (out, *out.resolve().parents) if path.exists())
        need, free = 4 * len(self.mean) * people, shutil.disk_usage(there).free
        if need > free:
            raise InputError(f"{people:,} LoRAs take {need / 2**30:,.1f} GiB, and {there} has {free / 2**30:,.1f} GiB left; give fewer by --start and --stop")

    def _matrices(self, layout, base):
        """({module: (A's (start, stop, shape), B's)}, number of weights) of the layout, whose order is that of the flattened weights."""
        places, found, start = Places({"unet": base.unet}), {}, 0
        layers = dict(base.unet.named_modules())
        for name, entry in layout.items():
            shape = self._shape_of(name, entry)
            match = _MATRIX.fullmatch(name)
            if not match:
                raise InputError(f"{self.layout}: {name!r} is no LoRA matrix; only names that end in lora_A.weight, lora_down.weight and the like are read")
            side, bare = "AB"[match[2] in ("B", "up")], match[1].removeprefix("lora_unet_")
            try:
                _, module, _ = places.find(f"{bare if '.' in bare else match[1]}.lora_{side}.weight", self.layout)
            except InputError as error:
                raise InputError(f"{error}; give the base that the LoRAs were trained on") from None
            stop = start + shape[0] * shape[1]
            if found.setdefault(module, {}).setdefault(side, (start, stop, shape))[0] != start:
                raise InputError(f"{self.layout}: {name!r} is the second matrix {side} of {module}; get the file again")
            start = stop
        rank = None
        for module, pair in found.items():
            layer = layers[module]
            if set(pair) != {"A", "B"} or not isinstance(layer, torch.nn.Linear):
                raise InputError(f"{self.layout}: {module} is no linear layer with both matrices of a LoRA; give the base that the LoRAs were trained on")
            a, b = (pair[side][2] for side in "AB")
            rank = rank or a[0]
            if a != (rank, layer.in_features) or b != (layer.out_features, rank):
                needed = f"(rank, {layer.in_features}) and ({layer.out_features}, rank), one rank for all layers; give the base they were trained on"
                raise InputError(f"{self.layout}: the LoRAs of {module} have shapes {a} and {b}; this layer needs {needed}")
        if not found:
            raise InputError(f"{self.layout} names no matrix; get the file again")
        return {module: (pair["A"], pair["B"]) for module, pair in found.items()}, start

    def _shape_of(self, name, entry):
        """(rows, columns) of an entry, told with or without the number of elements."""
        sizes = entry if isinstance(entry, list) else []
        told = sizes[0] if len(sizes) == 2 and isinstance(sizes[0], list) else None
        shape = sizes[1] if told is not None else sizes
        numbers = [*(told or []), *shape] if isinstance(shape, list) else []
        if len(numbers) not in (2, 3) or len(shape) != 2 or not all(type(number) is int and number > 0 for number in numbers):
            raise InputError(f"{self.layout}: {name!r} must be [rows, columns] or [[elements], [rows, columns]] in whole numbers, not {json.dumps(entry)[:80]}")
        if told and told[0] != shape[0] * shape[1]:
            raise InputError(f"{self.layout}: {name!r} has {told[0]} elements in a shape of {shape[0]} x {shape[1]}; get the file again")
        return tuple(shape)

    def _places(self, names):
        """{tensor's name: file of the folder that holds it}."""
        found, wanted = {}, (names.components, names.mean, names.deviation, names.coefficients)
        if len(set(wanted)) < len(wanted):
            raise InputError(f"the tensors' names must differ: {', '.join(wanted)}")
        for path in sorted(self.folder.glob("*.safetensors")):
            path = files.inside(self.folder, path.name)
            with weights.opened(path) as handle:
                for name in set(handle.keys()) & set(wanted):
                    if name in found:
                        raise InputError(f"{self.folder}: tensor {name!r} is in {found[name].name} and in {path.name}; remove one of them")
                    found[name] = path
        missing = [name for name in wanted if name not in found]
        if missing:
            raise InputError(f"{self.folder} has no safetensors file with a tensor {missing[0]!r}; convert it, too, or give its name by --names")
        return found

    @staticmethod
    def _kept(places, length, names):
        """k, the number of coefficients of each person, once every shape has been held against the layout and the others."""
        shapes = {}
        for name, path in places.items():
            with weights.opened(path) as handle:
                shapes[name] = tuple(handle.get_slice(name).get_shape())
        components, coefficients = shapes[names.components], shapes[names.coefficients]
        needed = {names.components: (length, *components[1:2]), names.mean: (length,), names.deviation: (length,)}
        for name, shape in needed.items():
            if shapes[name] != shape or (name == names.components and len(shape) != 2):
                raise InputError(f"{places[name]}: tensor {name!r} has shape {shapes[name]}, but the layout has {length} weights; get both from one place")
        if len(coefficients) != 2 or not coefficients[0] or not 1 <= coefficients[1] <= components[1]:
            told = f"(LoRAs, at most {components[1]} components)"
            raise InputError(f"{places[names.coefficients]}: tensor {names.coefficients!r} has shape {coefficients}, but must have {told}; get it again")
        return coefficients[1]

    @staticmethod
    def _read(places, name, columns=None):
        """A tensor as float32, or its first columns."""
        with weights.opened(places[name]) as handle:
            tensor = handle.get_tensor(name) if columns is None else handle.get_slice(name)[:, :columns]
        return weights.finite(places[name], name, tensor.float() if tensor.is_floating_point() else tensor)

    def _alpha(self, given):
        """Alpha by the options, else by the settings of peft beside the tensors, with which it must agree."""
        path = self.folder / SETTINGS
        settings = files.read_object(files.inside(self.folder, SETTINGS)) if path.is_file() else {}
        for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
            if settings.get(key):
                raise InputError(f"{path} sets {key}, which is not a plain LoRA of one rank; only those are supported")
        alpha = given or settings.get("lora_alpha")
        if alpha is None:
            raise InputError(f"{self.folder} does not say what alpha its LoRAs were trained with; give --alpha, or put their {SETTINGS} beside the tensors")
        if settings.get("r", self.rank) != self.rank or isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
            raise InputError(f"{path}: its rank or alpha is not usable with matrices of rank {self.rank}; give the settings that belong to them")
        return float(alpha)

"""Every setting there is, what it means and what it may be."""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from configs.strict import Strict, UserError, apply_sets, check, expand, read_preset
from counterfactory.models.roles import MODEL_ROLES, ROLES, TRAINED_ROLES, expect_role

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
BANK_ROWS = ":512"  # of a data set whose images stand in a model's place
ModelRole = Annotated[str, AfterValidator(partial(expect_role, known=MODEL_ROLES))]
TrainedRole = Annotated[str, AfterValidator(partial(expect_role, known=TRAINED_ROLES))]
# a class's name; a number is one, too
Word = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")]


class DataConfig(Strict):
    """A data set in Parquet: what every kind of data has."""

    preset: str | None = None
    path: str  # file, folder or glob; local, s3:// or another scheme that fsspec reads
    label: str | None = None  # column: bool, class index or class name
    id: str | None = None  # column; else sha256 of content and source
    # column with train/test, or the constant `train` / `test` where no such column exists; training
    # takes the rows of `train`, a holdout the others
    split: str | None = None
    # further columns to carry along (a target column, ground-truth attributes)
    columns: list[str] = []
    rows: str | None = None  # "a:b", a slice over all files in name order

    @field_validator("rows")
    @classmethod
    def _rows(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d*:\d*", value):
            raise ValueError(f"expected a slice like 5000:6000, got {value!r}")
        return value


class ImageData(DataConfig):
    """Images, and how they become (3,H,W) in [0,1]."""

    kind: Literal["image"] = "image"
    image: str = "image"  # column: struct<bytes, path>, binary, or paths of image files
    # column: PNG of region indices, the image's size; for methods that work by regions
    mask: str | None = None
    # of the images that methods work on: the side of a square, or [width, height]
    size: int | tuple[int, int] = 64
    crop: tuple[int, int, int, int] | None = None  # left, top, right, bottom, before resizing
    max_pixels: Count = 50_000_000  # larger images are quarantined

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> int | tuple[int, int]:
        several = list(value) if isinstance(value, list | tuple) else [value]
        if (
            len(several) > 2
            or any(type(side) is not int or side < 1 for side in several)
            or value in ([], ())
        ):
            raise ValueError(f"expected a side of 1 px or more, or [width, height], got {value!r}")
        return (several[0], several[1]) if len(several) == 2 else int(several[0])

    @field_validator("crop")
    @classmethod
    def _crop(cls, value: tuple[int, int, int, int] | None) -> tuple[int, int, int, int] | None:
        if value is not None and not (0 <= value[0] < value[2] and 0 <= value[1] < value[3]):
            raise ValueError(f"expected left < right and top < bottom, got {list(value)}")
        return value


class ModelConfig(Strict):
    """A pinned model: where its code and weights come from and how its inputs and
    outputs are read."""

    preset: str | None = None
    role: ModelRole
    source: Literal["torch", "huggingface", "export", "onnx", "parquet"] = "torch"
    # source torch: dotted path to a torch module class or a function that makes one
    target: str | None = None
    settings: dict[str, Any] = {}  # its arguments
    # A file (safetensors, or .pt read with weights_only), `zoo:NAME` for a shipped one, a hub id or
    # a folder; `package:NAME/PATH` for a file of an installed package, `package:NAME` for what that
    # package brings by itself. Of source parquet, images in the place of a model: as data.path,
    # default the run's own; settings are ImageData's.
    weights: str | None = None
    revision: str | None = None  # of a hub id
    sha256: str | None = None  # of the weights file; checked at load
    # source torch: the entry of a training checkpoint, dotted, where several fit the network
    entry: str | None = None
    # What a method may use of a classifier; default: gradient, of source onnx scores.
    access: Literal["gradient", "scores", "labels"] | None = None
    classes: list[Word] = []  # class or attribute names, in the outputs' order
    head: Literal["softmax", "sigmoid"] = "softmax"
    output: int | None = None  # sigmoid: which output is the decision, where there are several
    # input side the network wants; images are resized to it inside the wrapper
    size: Count | None = None
    # Of the network's input; images become gray for 1. Default: what its first layer takes.
    channels: Literal[1, 3] | None = None
    mean: list[float] = []  # per channel, in [0,1] scale; empty: no normalisation
    std: list[float] = []
    # The layer whose input is the features (role features), or the penultimate features (role
    # classifier), such as the last; none: what the network's own method `features` gives.
    layer: str | None = None
    # what figures made with it are called: fid[LABEL]; default: the preset's name
    label: str | None = None

    @property
    def given(self) -> str:
        """What a method may use of it: "gradient", "scores" or "labels"."""
        return self.access or ("scores" if self.source == "onnx" else "gradient")

    @model_validator(mode="after")
    def _whole(self) -> ModelConfig:
        if (self.role == "distractors") != (self.source == "parquet"):
            raise ValueError(
                f"expected the role distractors of source parquet, got {self.role} of {self.source}"
            )
        if self.source == "torch" and not self.target:
            raise ValueError("expected `target`, the dotted path of a torch module, got none")
        if self.source not in ("torch", "parquet") and not self.weights:
            raise ValueError(f"expected `weights` for source {self.source}, got none")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 1, 3):
            raise ValueError(
                f"expected mean and std of one length, 1 or 3, got {len(self.mean)} and"
                f" {len(self.std)}"
            )
        if any(s <= 0 for s in self.std):
            raise ValueError(f"expected std > 0, got {self.std}")
        if ROLES[self.role].classes and not self.classes and self.source != "huggingface":
            raise ValueError(f"expected `classes`, the names of the {self.role}' outputs, got none")
        if (
            self.head == "sigmoid"
            and self.role == "classifier"
            and self.classes
            and len(self.classes) != 2
        ):
            raise ValueError(
                "expected 2 classes (negative, positive) for a sigmoid classifier, got"
                f" {len(self.classes)}"
            )
        return self


class MethodConfig(Strict):
    """A method by the dotted path of its class, and its settings."""

    preset: str | None = None
    # Of whatever module; or `elsewhere` for counterfactuals that were made by others (`score
    # --originals`).
    target: Annotated[str, Field(pattern=r"^(elsewhere|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+)$")]
    settings: dict[str, Any] = {}
    paper: str | None = None


class TargetConfig(Strict):
    """Which class a row should flip to: give one of the three."""

    rule: Literal["opposite", "runner-up"] | None = None
    name: Word | None = None  # a class's name
    column: str | None = None  # a column that holds the class's name or index

    @model_validator(mode="after")
    def _one(self) -> TargetConfig:
        if sum(value is not None for value in (self.rule, self.name, self.column)) != 1:
            raise ValueError("expected exactly one of rule, name, column")
        return self


class EngineConfig(Strict):
    """Where and how the work is run; shape, device and on a GPU batch may change rounding, nothing
    else changes a result.
    """

    kind: Literal["ray", "local"] = "ray"
    # Default: one per CPU that may be used here (on a cluster all CPUs but one), or as many as its
    # GPUs hold.
    workers: int | None = Field(default=None, ge=1)
    gpus: float = Field(default=0, ge=0)  # per worker; fractions share a GPU
    device: str = "auto"
    threads: Count = 1  # torch threads per worker
    # rows per method call; auto: 16, on a GPU doubled while memory holds
    batch: Count | Literal["auto"] = 32
    # Rows that a network computes at a time, padded where a call has fewer: a number is the only
    # shape. auto: 4 or more on a CPU, the batch on a GPU (docs/how-it-works.md).
    shape: Count | Literal["auto"] = "auto"
    # A row that takes longer is set aside, and a batch that takes longer than 4 such rows is gone
    # through row by row; null: no limit.
    row_seconds: float | None = Field(default=900.0, gt=0)
    shard_rows: Count = 64  # rows per shard: aim for 30-120 s of work
    address: str | None = None  # of a running Ray cluster; default: RAY_ADDRESS, else a local one
    attempts: Count = 3  # starts of one shard before its killer row is searched


class ScoreConfig(Strict):
    # the attributes that should decide (ground truth of the audit), by the oracle's names
    causal: list[str] = []
    # the attribute that the classifier decides on (cd, mnac); default: the first causal one
    query: str | None = None
    # reference: as public code has it, up to 1.02; the figure's name shows it
    cout: Literal["bounded", "reference"] = "bounded"
    cout_steps: Count = 50
    # Points of COUT's curve are left out between two that differ by no more; 0: none. Told as
    # cout[tolerance].
    cout_tolerance: Fraction = 0.0
    # Parquet with a column of labels for each attribute, for cd; default: the originals as the
    # oracle sees them.
    cd_labels: str | None = None
    cd_target: bool = False  # count the query attribute's own difference, as public code does
    lpr_tolerance: Annotated[float, Field(ge=0)] = 0.1  # a latent that moves by more has changed
    kid_rows: Annotated[int, Field(ge=2)] = 2000  # of each side, by a hash of their ids
    # rows whose floating-point operations are counted; 0: not counted
    flops_rows: Annotated[int, Field(ge=0)] = 4
    bootstrap: Count = 400
    threshold: Fraction = 0.5  # of the oracle's attribute probabilities
    batch: Count = 64


class JudgeConfig(Strict):
    # a wording of configs/judge/, or a YAML file: faces-smile, faces-age, traffic, ...
    wording: str = "generic"
    model: str = "gpt-4o-mini"
    # prompts for at most so many answers; default all
    max_rows: int | None = Field(default=None, ge=0)
    # Of an answer, with a model's thoughts; null: the server's default. auto: 300, of a model that
    # thinks 4000.
    max_tokens: Count | Literal["auto"] | None = "auto"
    # null: the server's default; auto: 0, of a model that thinks null, since it refuses others
    temperature: Annotated[float, Field(ge=0, le=2)] | Literal["auto"] | None = "auto"
    # of the images; null: the server's default
    detail: Literal["low", "high", "auto"] | None = None
    # Does the model think first; null: OpenAI's models that do are known by their names.
    reasoning: bool | None = None


class AugmentConfig(Strict):
    splits: list[str] = ["train"]
    min_target: Fraction = 0.5  # probability of the target on the stored image
    max_l1: float | None = None  # mean absolute change per pixel, [0,1]
    min_cout: float | None = None
    max_other_attributes: int | None = None  # spurious attributes changed, by the oracle
    min_judge: float | None = None  # mean judge score; rows without an answer fail
    balance: bool = True  # same number of rows per target class
    label: Literal["target", "original"] = "target"  # the label a flipped row carries
    # Of several answers to one row:
    per_row: Count | None = None  # at most so many, the first that pass; default all
    # each so far from the others, mean absolute difference of a pixel
    min_apart: Fraction = 1 / 255


class ReportConfig(Strict):
    title: str | None = None
    gallery: Annotated[int, Field(ge=0, le=400)] = 24
    failures: Annotated[int, Field(ge=0, le=400)] = 12


class RunConfig(Strict):
    """One run: a data set, a classifier, a method, and what is done with the answers."""

    name: Name
    data: ImageData
    # classifier, and what the method needs: autoencoder, denoiser; also oracle, second
    models: dict[str, ModelConfig]
    method: MethodConfig
    target: TargetConfig = TargetConfig(rule="opposite")
    seed: Annotated[int, Field(ge=0)] = 0
    out: str = "runs"  # the run's folder is out/name
    engine: EngineConfig = EngineConfig()
    score: ScoreConfig = ScoreConfig()
    judge: JudgeConfig = JudgeConfig()
    augment: AugmentConfig = AugmentConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _has_classifier(self) -> RunConfig:
        if "classifier" not in self.models:
            raise ValueError(
                "models: expected a `classifier`, got " + (", ".join(self.models) or "none")
            )
        return self

    @model_validator(mode="after")
    def _own_images(self) -> RunConfig:
        """What is not said of images in the place of a model is as the run's data has it, but for
        the rows.
        """
        for name, spec in self.models.items():
            if spec.source == "parquet":
                alike = {"size"} if spec.weights else {"size", "image", "crop", "max_pixels"}
                own = self.data.model_dump(mode="json", include=alike)
                over = {
                    "weights": spec.weights or self.data.path,
                    "settings": {**own, "rows": BANK_ROWS, **spec.settings},
                }
                self.models[name] = spec.model_copy(update=over)
        return self


class TrainConfig(Strict):
    """Training of one of our own networks from Parquet."""

    name: Name
    role: TrainedRole
    data: ImageData  # rows to train on
    # causal: the `classifier` whose features are split; attribution: the `autoencoder` whose
    # latents are described
    models: dict[str, ModelConfig] = {}
    # attributes: columns to learn; classifier, causal: empty, data.label is learnt
    labels: list[str] = []
    classes: list[Word] = []  # semantic: the masks' regions, in their order
    # rows to measure on; default: those of data.split that are not `train`
    holdout: ImageData | None = None
    target: str  # dotted path of the network
    settings: dict[str, Any] = {}
    # dotted path of a pipelines.train.trainer.Trainer; default: the role's own
    trainer: str | None = None
    # weights to start from, as ModelConfig.weights; default: the seed's random ones
    init: str | None = None
    steps: Annotated[int, Field(ge=1)]
    batch: Count = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: Fraction = 0.0  # decay of the averaged weights that are saved; 0: none
    flip: bool = False  # mirror at random
    objective: dict[str, float] = {}  # weights of the loss terms
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the forward pass (autocast)
    threads: Count = 1
    device: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 100
    out: str  # safetensors file (fp16); a card of the same name (.yaml) is written beside it

    @model_validator(mode="after")
    def _has_models(self) -> TrainConfig:
        wanted = ROLES[self.role].models
        if tuple(self.models) != wanted:
            got = ", ".join(self.models) or "none"
            raise ValueError(
                f"models: expected {', '.join(wanted) or 'none'} to train {self.role}, got {got}"
            )
        return self


PRESET_GROUPS = {"data": "data", "holdout": "data", "method": "method", "models.*": "model"}


def load_run(name: str, sets: list[str] | None = None) -> RunConfig:
    """Read a run config by preset name or path, with `a.b=c` settings laid over it."""
    return resolve_run(read_preset("run", name), sets or [], name)


def resolve_run(raw: dict[str, Any], sets: list[str], where: str) -> RunConfig:
    """Raw settings, which may name presets, with `a.b=c` settings laid over them; UserError names
    `where`.
    """
    return check(RunConfig, _expanded(apply_sets(raw, sets, PRESET_GROUPS)), where)


def load_train(name: str, sets: list[str] | None = None) -> TrainConfig:
    """Read a training config by preset name or path, with `a.b=c` settings laid over it."""
    raw = apply_sets(read_preset("train", name), sets or [], PRESET_GROUPS)
    return check(TrainConfig, _expanded(raw), name)


def _expanded(raw: dict[str, Any]) -> dict[str, Any]:
    out = dict(raw)
    for key in ("data", "holdout", "method"):
        if key in out:
            out[key] = expand(out[key], key if key != "holdout" else "data")
    if isinstance(out.get("models"), dict):
        out["models"] = {role: expand(spec, "model") for role, spec in out["models"].items()}
    rule = out.get("target")
    if rule is not None and not isinstance(rule, dict) and "method" in out:
        out["target"] = {"rule": rule} if rule in ("opposite", "runner-up") else {"name": rule}
    return out


def fingerprint(value: Any) -> str:
    """The first 16 hex digits of the sha256 of a JSON value with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


__all__ = ["RunConfig", "TrainConfig", "UserError", "fingerprint", "load_run", "load_train"]

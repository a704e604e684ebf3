"""All settings, with their meanings and allowed values."""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from configs.ask import AskConfig, expect_ask
from configs.strict import Strict, UserError, apply_sets, check, expand, read_preset
from counterfactory.models.roles import (
    BLACK_BOXES,
    MODEL_ROLES,
    ROLES,
    TRAINED_ROLES,
    expect_role,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
JudgeScore = Annotated[float, Field(ge=1, le=10)]
BANK_ROWS = ":512"  # the rows of a data set used as a model (source parquet)
ModelRole = Annotated[str, AfterValidator(partial(expect_role, known=MODEL_ROLES))]
TrainedRole = Annotated[str, AfterValidator(partial(expect_role, known=TRAINED_ROLES))]
# a class's name; an integer is read as a name, too
Word = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")]


class DataConfig(Strict):
    """A data set in Parquet: the settings that every kind of data has."""

    preset: str | None = None
    path: str  # file, folder or glob; local, s3:// or another scheme that fsspec reads
    label: str | None = None  # column: bool, class index or class name
    id: str | None = None  # column; default: sha256 of content and source
    # column with train/test, or the constant `train` / `test` where no such column exists; training
    # uses the rows of `train`, a holdout the other rows
    split: str | None = None
    # further columns to store with the rows (a target column, ground-truth attributes)
    columns: list[str] = []
    rows: str | None = None  # "a:b", a slice over all files in name order

    @field_validator("rows")
    @classmethod
    def _rows(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d*:\d*", value):
            raise ValueError(f"expected a slice like 5000:6000, got {value!r}")
        return value


class ImageData(DataConfig):
    """Images, and the settings that convert them to (3,H,W) in [0,1]."""

    kind: Literal["image"] = "image"
    image: str = "image"  # column: struct<bytes, path>, binary, or paths of image files
    # column: PNG of region indices, of the image's size; for methods that use regions
    mask: str | None = None
    # of the images that methods use: the side of a square, or [width, height]
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


# the sources from kserve on can only be asked (docs/black-box.md)
Source = Literal[
    "torch",
    "huggingface",
    "export",
    "onnx",
    "parquet",
    "kserve",
    "tfserving",
    "torchserve",
    "hf",
    "http",
    "python",
    "sklearn",
]


class ModelConfig(Strict):
    """A pinned model: the source of its code and weights, and the form of its inputs and
    outputs."""

    preset: str | None = None
    role: ModelRole
    source: Source = "torch"
    # source torch: dotted path of a torch module class, or of a function that returns a module;
    # source python: of a function of images (N,H,W,C) uint8, or of a class of such functions
    target: str | None = None
    settings: dict[str, Any] = {}  # its arguments
    # A file (safetensors, or .pt read with weights_only), `zoo:NAME` for a shipped one, a hub id or
    # a folder; `package:NAME/PATH` for a file of an installed package, `package:NAME` for weights
    # that the package finds itself. For source parquet, images are used as a model: weights are
    # then as data.path (default: the run's data), and settings are those of ImageData.
    weights: str | None = None
    revision: str | None = None  # of a hub id
    sha256: str | None = None  # of the weights file; checked at load
    # source torch: dotted entry of a training checkpoint, where several entries fit the network
    entry: str | None = None
    # What a method may use of a classifier; default: gradient, or scores for source onnx and the
    # sources that are asked (labels where ask.outputs is labels).
    access: Literal["gradient", "scores", "labels"] | None = None
    ask: AskConfig | None = None  # how a black box is asked: sources kserve to sklearn
    classes: list[Word] = []  # class or attribute names, in the outputs' order
    head: Literal["softmax", "sigmoid"] = "softmax"
    output: int | None = None  # sigmoid: index of the decision's output, where there are several
    # side of the network's input; the wrapper resizes images to it
    size: Count | None = None
    # Of the network's input; for 1 images are converted to gray. Default: those of its first layer.
    channels: Literal[1, 3] | None = None
    mean: list[float] = []  # per channel, in [0,1] scale; empty: no normalisation
    std: list[float] = []
    # The layer whose input is used as the features (role features) or the penultimate features
    # (role classifier), such as the last layer; null: the network's own method `features`.
    layer: str | None = None
    # its name in figures computed with it: fid[LABEL]; default: the preset's name
    label: str | None = None

    @property
    def given(self) -> str:
        """Return what a method may use of it: "gradient", "scores" or "labels"."""
        if self.access is None and self.ask is not None and self.ask.outputs == "labels":
            return "labels"
        asked = self.source == "onnx" or self.source in BLACK_BOXES
        return self.access or ("scores" if asked else "gradient")

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, value: Any) -> Any:
        """Give a black box without `ask` its default settings."""
        if isinstance(value, dict) and value.get("source") in BLACK_BOXES:
            return {**value, "ask": value.get("ask") or {}}
        return value

    @model_validator(mode="after")
    def _black_box(self) -> ModelConfig:
        """Refuse settings of a black box that do not fit together."""
        if self.source not in BLACK_BOXES:
            if self.ask is not None:
                raise ValueError(
                    f"expected `ask` for a source out of {', '.join(BLACK_BOXES)}, got source"
                    f" {self.source}"
                )
            return self
        assert self.ask is not None
        if self.role != "classifier":
            raise ValueError(
                f"expected the role classifier for source {self.source}, got {self.role}"
            )
        if self.access == "gradient":
            raise ValueError(
                f"expected access scores or labels for source {self.source}, got gradient"
            )
        if self.source == "python" and not self.target:
            raise ValueError("expected `target`, the dotted path of a function, got none")
        file = self.weights if self.source == "sklearn" else None
        if file and not file.endswith(".skops") and not (self.sha256 and self.ask.trust):
            raise ValueError(
                f"expected sha256 and ask.trust: true for {file}, got"
                f" {'no sha256' if self.ask.trust else 'no trust'}: joblib runs the code in the"
                " file; a .skops file needs neither"
            )
        if self.ask.outputs == "sigmoid" and len(self.classes) not in (0, 2):
            raise ValueError(
                "expected 2 classes (negative, positive) for ask.outputs sigmoid, got"
                f" {len(self.classes)}"
            )
        expect_ask(self.source, self.ask)
        return self

    @model_validator(mode="after")
    def _whole(self) -> ModelConfig:
        if (self.role == "distractors") != (self.source == "parquet"):
            raise ValueError(
                f"expected the role distractors of source parquet, got {self.role} of {self.source}"
            )
        if self.source == "torch" and not self.target:
            raise ValueError("expected `target`, the dotted path of a torch module, got none")
        without = ("torch", "parquet", *BLACK_BOXES)
        if (self.source not in without or self.source == "sklearn") and not self.weights:
            raise ValueError(f"expected `weights` for source {self.source}, got none")
        if self.entry is not None and self.source != "torch":
            raise ValueError(f"expected `entry` for source torch alone, got source {self.source}")
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
    # Of any module; or `elsewhere` for counterfactuals that others made (`score --originals`).
    target: Annotated[str, Field(pattern=r"^(elsewhere|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+)$")]
    settings: dict[str, Any] = {}
    # Answer with the core of each change: the fewest cells of it that flip nearly as surely
    core: bool = False
    paper: str | None = None


class TargetConfig(Strict):
    """The class that a row should flip to: set exactly one of the three."""

    rule: Literal["opposite", "runner-up"] | None = None
    name: Word | None = None  # a class's name
    column: str | None = None  # a column that holds the class's name or index

    @model_validator(mode="after")
    def _one(self) -> TargetConfig:
        if sum(value is not None for value in (self.rule, self.name, self.column)) != 1:
            raise ValueError("expected exactly one of rule, name, column")
        return self


class EngineConfig(Strict):
    """Where and how the work runs.

    shape, device and (on a GPU) batch may change rounding. No other setting changes a result.
    """

    kind: Literal["ray", "local"] = "ray"
    # Default: one per CPU that this process may use (on a cluster all CPUs but one), or as many as
    # fit on the GPUs.
    workers: int | None = Field(default=None, ge=1)
    gpus: float = Field(default=0, ge=0)  # per worker; fractions share a GPU
    device: str = "auto"
    threads: Count = 1  # torch threads per worker
    # rows per method call; auto: 16, on a GPU doubled while memory is enough
    batch: Count | Literal["auto"] = 32
    # Rows that a network computes at a time; calls with fewer rows are padded. With a number, all
    # calls have this shape. auto: 4 or more on a CPU, the batch on a GPU (docs/how-it-works.md).
    shape: Count | Literal["auto"] = "auto"
    # A row that takes longer is quarantined. A batch that takes longer than 4 such rows is computed
    # again row by row. null: no limit.
    row_seconds: float | None = Field(default=900.0, gt=0)
    shard_rows: Count = 64  # rows per shard: aim for 30-120 s of work
    address: str | None = None  # of a running Ray cluster; default: RAY_ADDRESS, else a local one
    attempts: Count = 3  # starts of a shard before the row that kills it is searched


class ScoreConfig(Strict):
    # the attributes that should decide (ground truth of the audit), by the oracle's names
    causal: list[str] = []
    # the attribute that the classifier decides on (cd, mnac); default: the first causal one
    query: str | None = None
    # reference: as public code computes it, up to 1.02; the figure's name shows it
    cout: Literal["bounded", "reference"] = "bounded"
    cout_steps: Count = 50
    # Skip points of COUT's curve between two that differ by no more than this; 0: skip none. The
    # figure is then named cout[tolerance].
    cout_tolerance: Fraction = 0.0
    # Parquet with a column of labels for each attribute, for cd; default: the oracle's predictions
    # of the originals.
    cd_labels: str | None = None
    cd_target: bool = False  # count the query attribute's own difference, as in public code
    lpr_tolerance: Annotated[float, Field(ge=0)] = 0.1  # a latent that moves by more has changed
    kid_rows: Annotated[int, Field(ge=2)] = 2000  # of each side, by a hash of their ids
    # rows whose floating-point operations are counted; 0: not counted
    flops_rows: Annotated[int, Field(ge=0)] = 4
    bootstrap: Count = 400
    threshold: Fraction = 0.5  # of the oracle's attribute probabilities
    batch: Count = 64


class InterventionsConfig(Strict):
    """The experiment that shows which part of a change decides (docs/interventions.md)."""

    enabled: bool = True  # false: `run` skips the stage
    mixtures: Annotated[int, Field(ge=2)] = 16  # of a row's original and counterfactual
    grid: Annotated[int, Field(ge=2, le=16)] = 8  # cells per side; memory grows with its 4th power
    kinds: bool = True  # also colour, coarse and fine change; 6 evaluations of a sampled row
    # the rows whose mixtures the oracle and the second classifier see, and whose kinds of change
    # are measured: these figures are of the whole run, and more rows add little to them
    sample: Count = 256
    # most groups of alike changes that are shown of a direction; 0: rows are not grouped
    themes: Annotated[int, Field(ge=0, le=12)] = 6
    # the pairs of unrelated rows that the effect map is compared with; 0: none
    control: Annotated[int, Field(ge=0)] = 64
    # regions of the masks where decisions should lie; default: the region with most of the effect
    places: list[str] = []
    batch: Count = 64


class SpendConfig(Strict):
    """Prices of a live judge in any currency, and the most that the stage may cost."""

    cap: float | None = Field(default=None, gt=0)  # null: no limit
    per_million_in: Annotated[float, Field(ge=0)] = 0.0
    per_million_out: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _priced(self) -> SpendConfig:
        if self.cap is not None and not self.per_million_in + self.per_million_out:
            raise ValueError("expected per_million_in and per_million_out for a cap, got none")
        return self


class VllmConfig(Strict):
    """vLLM's engines on the cluster's own GPUs, for `judge --vllm`; the model is judge.model."""

    replicas: Count = 1  # engines
    batch: Count = 64  # prompts that an engine is given at a time
    # arguments of vLLM's engine: tensor_parallel_size (GPUs of an engine), max_model_len, ...
    engine: dict[str, Any] = {}


class JudgeConfig(Strict):
    # a wording of configs/judge/ (faces-smile, faces-age, traffic, ...), or a YAML file
    wording: str = "generic"
    model: str = "gpt-4o-mini"
    # the largest number of answers to judge; default: all
    max_rows: int | None = Field(default=None, ge=0)
    # Of an answer, reasoning included; null: the server's default. auto: 300, or 4000 for a
    # reasoning model.
    max_tokens: Count | Literal["auto"] | None = "auto"
    # null: the server's default; auto: 0, or null for a reasoning model, which refuses numbers
    temperature: Annotated[float, Field(ge=0, le=2)] | Literal["auto"] | None = "auto"
    # of the images; null: the server's default
    detail: Literal["low", "high", "auto"] | None = None
    # Whether it is a reasoning model; null: by the name, for OpenAI's models.
    reasoning: bool | None = None
    # reasoning_effort of the requests; null: left out
    effort: str | None = None
    # Of a server that speaks OpenAI's chat completions, for `judge --live`: https://HOST/v1
    url: str | None = None
    # the environment variable that holds its key, never the key; null: the server needs none
    key: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    dialect: Literal["openai", "azure", "ollama", "lmstudio", "gemini", "any"] = "any"
    requests_per_minute: float | None = Field(default=None, gt=0)  # null: no limit
    tokens_per_minute: float | None = Field(default=None, gt=0)
    concurrency: Count = 8  # requests at a time
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds for one answer
    retries: Annotated[int, Field(ge=0)] = 5  # of a request that failed
    repeats: Count = 1  # answers to each row
    # The share of rows whose original is also judged as its own counterfactual, and the share of
    # rows that are also judged with another row's counterfactual.
    controls: Annotated[float, Field(ge=0, le=1)] = 0.05
    # The share of rows that are also judged with the two pictures in the other order.
    swapped: Annotated[float, Field(ge=0, le=1)] = 0.0
    proxy: str | None = None  # address of an HTTP proxy that --live goes through
    spend: SpendConfig = SpendConfig()
    vllm: VllmConfig = VllmConfig()


class JudgeGates(Strict):
    """The least score of each criterion, 1 to 10; rows without an answer fail."""

    validity: JudgeScore | None = None
    sparsity: JudgeScore | None = None
    proximity: JudgeScore | None = None
    realism: JudgeScore | None = None


class AugmentConfig(Strict):
    splits: list[str] = ["train"]
    min_target: Fraction = 0.5  # probability of the target on the stored image
    max_l1: float | None = None  # mean absolute change per pixel, [0,1]
    min_cout: float | None = None
    max_other_attributes: int | None = None  # spurious attributes changed, by the oracle
    min_judge: float | None = None  # mean judge score; rows without an answer fail
    judge: JudgeGates = JudgeGates()  # the least score of single criteria
    balance: bool = True  # same number of rows per label
    # The label that a flipped row gets: target, the class asked for; source, the class predicted on
    # the original; oracle, by the attribute that the class means (score.query, or the first of
    # score.causal), rows between 0.1 and 0.9 are left out; soft, the same with its probabilities
    # and no row left out; judge, target from validity 8, source to 3, the others are left out;
    # review, target where most reviewers say valid, source where they say spurious, the others are
    # left out; original, the true class of the original. null: oracle where it can be, else
    # target, with a warning.
    label: Literal["target", "source", "oracle", "judge", "review", "soft", "original"] | None = (
        None
    )
    # true: label by a judge that was compared on less than 100 rows (docs/judge.md)
    uncalibrated: bool = False
    # parquet is always written; webdataset: tar files; folder: image files and metadata.csv
    formats: list[Literal["parquet", "webdataset", "folder"]] = ["parquet"]
    # A Parquet data set whose rows may not get into the set, read by the settings of data. Where it
    # has the column data.split, rows of `splits` are not held out. The run's own rows of other
    # splits are always held out.
    held_out: str | None = None
    # Of several answers to one row:
    per_row: Count | None = None  # use the first answers that pass, up to this number; default: all
    # least distance of each to the others, mean absolute difference of a pixel
    min_apart: Fraction = 1 / 255


class ReportConfig(Strict):
    title: str | None = None
    gallery: Annotated[int, Field(ge=0, le=400)] = 24
    failures: Annotated[int, Field(ge=0, le=400)] = 12


class RunConfig(Strict):
    """One run: a data set, a classifier, a method, and the stages after it."""

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
    interventions: InterventionsConfig = InterventionsConfig()
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
    def _labels(self) -> RunConfig:
        """Refuse labels by an oracle that the run does not have before hours of work."""
        named = self.score.query or self.score.causal
        if self.augment.label in ("oracle", "soft") and not (named and "oracle" in self.models):
            raise ValueError(
                f"augment.label: {self.augment.label}: expected an oracle in models, and in"
                " score.query or score.causal the attribute that the classes mean, got"
                f" {'no attribute' if 'oracle' in self.models else 'no oracle'}"
            )
        return self

    @model_validator(mode="after")
    def _own_images(self) -> RunConfig:
        """Fill missing settings of images used as a model from the run's data, but not the rows."""
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
    """Training of one of this project's networks from Parquet."""

    name: Name
    role: TrainedRole
    data: ImageData  # rows to train on
    # causal: the `classifier` whose features are split; attribution: the `autoencoder` whose
    # latents are described
    models: dict[str, ModelConfig] = {}
    # role attributes: columns to learn; classifier, causal: empty, they learn data.label
    labels: list[str] = []
    classes: list[Word] = []  # semantic: the masks' regions, in their order
    # rows to measure on; default: those of data.split that are not `train`
    holdout: ImageData | None = None
    target: str  # dotted path of the network
    settings: dict[str, Any] = {}
    # dotted path of a pipelines.train.trainer.Trainer; default: the role's own
    trainer: str | None = None
    # initial weights, as ModelConfig.weights; default: random by the seed
    init: str | None = None
    steps: Annotated[int, Field(ge=1)]
    batch: Count = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: Fraction = 0.0  # decay of the averaged weights that are saved; 0: no average
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
    """Read a run config by preset name or path; sets: `a.b=c` settings that override it."""
    return resolve_run(read_preset("run", name), sets or [], name)


def resolve_run(raw: dict[str, Any], sets: list[str], where: str) -> RunConfig:
    """Return the checked run of raw settings, which may name presets.

    sets: `a.b=c` settings that override them. UserError, which names `where`, on a mistake.
    """
    return check(RunConfig, expanded(apply_sets(raw, sets, PRESET_GROUPS)), where)


def load_train(name: str, sets: list[str] | None = None) -> TrainConfig:
    """Read a training config by preset name or path; sets: `a.b=c` settings that override it."""
    raw = apply_sets(read_preset("train", name), sets or [], PRESET_GROUPS)
    return check(TrainConfig, expanded(raw), name)


def expanded(raw: dict[str, Any]) -> dict[str, Any]:
    """Return raw settings with the presets that they name in place of their names."""
    out = dict(raw)
    for key in ("data", "holdout", "validation", "test", "method"):
        if out.get(key) is not None:
            out[key] = expand(out[key], "method" if key == "method" else "data")
    if isinstance(out.get("models"), dict):
        out["models"] = {role: expand(spec, "model") for role, spec in out["models"].items()}
    rule = out.get("target")
    if rule is not None and not isinstance(rule, dict) and "method" in out:
        out["target"] = {"rule": rule} if rule in ("opposite", "runner-up") else {"name": rule}
    return out


def fingerprint(value: Any) -> str:
    """Return the first 16 hex digits of the sha256 of a JSON value with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


__all__ = ["RunConfig", "TrainConfig", "UserError", "fingerprint", "load_run", "load_train"]

"""`LanguageModel`: weights, tokenizer and chat template behind one runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from headway.core.errors import BadInput, Lacking, need_extra
from headway.core.files import sha256_of
from headway.core.model import Model, Site
from headway.core.weight import F32, Weight
from headway.llm import generation, scoring
from headway.llm.digests import model_digest
from headway.llm.families.base import Architecture
from headway.llm.generation import Generation
from headway.llm.room import check_room
from headway.llm.runtime import I64, KV_TYPES, KVType, Runtime
from headway.llm.sampling import Sampling
from headway.llm.template import ChatTemplate
from headway.llm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from headway.llm.reference import Reference

RuntimeKind = Literal["native", "exact", "torch"]
"""`native` multiplies with each weight form's own kernel, `exact` natively with the exact weights in float32,
`torch` is the readable reference network."""


class LanguageModel(Model):
    """A decoder-only language model. Immutable; a runtime is built at the first use."""

    task: Literal["language"] = "language"

    def __init__(
        self,
        name: str,
        architecture: Architecture,
        weights: Mapping[str, Weight],
        vectors: Mapping[str, F32],
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        runtime: RuntimeKind = "native",
        threads: int = 0,
        kv: KVType = "f16",
        source: Path | None = None,
        scheduler: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """kv: how the native runtime keeps keys and values (the exact one: float32).
        scheduler: the system, and its settings, that a server of this model is to schedule with.
        source: the GGUF file it was read from, for peers that read it too.

        Raises `BadInput` when a weight is missing or of another shape, or the tokenizer is another model's."""
        self.name = name
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.template = template
        self.runtime_kind: RuntimeKind = runtime
        self.threads = threads
        self.kv: KVType = kv
        self.source = source
        self.scheduler = scheduler
        self._weights = dict(weights)
        self._vectors = dict(vectors)
        self._check()

    def _check(self) -> None:
        if self.kv not in KV_TYPES:
            raise BadInput(f"no keys and values in {self.kv!r}", f"forms are: {', '.join(KV_TYPES)}")
        if self.runtime_kind not in ("native", "exact", "torch"):
            raise BadInput(f"no runtime {self.runtime_kind!r}", "runtimes are: native, exact, torch")
        wanted = {site.name: (site.out_features, site.in_features) for site in self.architecture.sites}
        for name, shape in wanted.items():
            found = self._weights.get(name)
            if found is None or found.shape != shape:
                has = "missing" if found is None else f"of shape {found.shape}"
                raise BadInput(f"{self.name}: the weight of {name} is {has}", f"it must have shape {shape}")
        unknown = sorted(set(self._weights) - set(wanted))
        if unknown:
            raise BadInput(f"{self.name} has no site {unknown[0]!r}", "see model.sites() for the names")
        for name, length in self.architecture.vectors.items():
            vector = self._vectors.get(name)
            if vector is None or vector.shape != (length,):
                raise BadInput(f"{self.name}: the vector {name} is missing or misshaped", f"it has length {length}")
        self.tokenizer.check(self.architecture.vocab, self.architecture.eos, self.name)

    # The Model protocol

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        values = model_digest(self.architecture, self._weights, self._vectors)
        return values if self.kv == "f16" else sha256_of(values, self.kv)

    def sites(self) -> Sequence[Site]:
        return self.architecture.sites

    def weight(self, site: str) -> Weight:
        if site not in self._weights:
            raise BadInput(f"{self.name} has no site {site!r}", "see model.sites() for the names")
        return self._weights[site]

    @property
    def vectors(self) -> Mapping[str, F32]:
        """Everything that is not a site's matrix: norms and biases, by state_dict name."""
        return self._vectors

    def with_weights(self, weights: Mapping[str, Weight]) -> Self:
        return self._like(weights={**self._weights, **weights}, source=None)

    def with_runtime(self, runtime: RuntimeKind, threads: int | None = None) -> Self:
        """The same model run by another runtime, or on another number of threads (0 = as set for the process)."""
        return self._like(runtime=runtime, threads=self.threads if threads is None else threads)

    def with_kv(self, kv: KVType) -> Self:
        """The same model with its keys and values kept in another form."""
        return self._like(kv=kv)

    def with_scheduler(self, system: str, settings: Mapping[str, Any]) -> Self:
        """The same model, to be served by that scheduler."""
        return self._like(scheduler=(system, dict(settings)))

    def _like(self, **changed: Any) -> Self:
        parts = {
            "name": self.name,
            "architecture": self.architecture,
            "weights": self._weights,
            "vectors": self._vectors,
            "tokenizer": self.tokenizer,
            "template": self.template,
            "runtime": self.runtime_kind,
            "threads": self.threads,
            "kv": self.kv,
            "source": self.source,
            "scheduler": self.scheduler,
        }
        return type(self)(**{**parts, **changed})

    def module(self) -> Reference:
        from headway.llm.reference import build

        return build(self.architecture, self._weights, self._vectors)

    def size_bytes(self) -> int:
        return sum(weight.nbytes for weight in self._weights.values()) + sum(v.nbytes for v in self._vectors.values())

    def save(self, folder: str | Path) -> None:
        from headway.core.files import make_folder
        from headway.llm.saved import save

        save(self, make_folder(folder))

    # Running it

    @cached_property
    def runtime(self) -> Runtime:
        """What executes the model, made at the first use."""
        if self.runtime_kind == "torch":
            try:
                from headway.llm.reference import TorchRuntime
            except ImportError:
                raise need_extra("torch", "torch") from None
            return TorchRuntime(self.architecture, self._weights, self._vectors)
        try:
            from headway.llm.native import NativeRuntime
        except ImportError as error:
            raise Lacking(f"the native extension is not built ({error})", "run: pip install . , or use torch") from None

        check_room(self.name, self.architecture, self._weights)
        exact = self.runtime_kind == "exact"
        return NativeRuntime(
            self.architecture,
            self._weights,
            self._vectors,
            kv="f32" if exact else self.kv,
            exact=exact,
            threads=self.threads,
        )

    def encode(self, text: str, *, start: bool = True, special: bool = True) -> list[int]:
        """Token ids; see `Tokenizer.encode`."""
        return self.tokenizer.encode(text, start=start, special=special)

    def logits(self, tokens: Sequence[int] | I64) -> F32:
        """Next-token logits after every token of one sequence: float32 (tokens, vocab)."""
        fed = self._tokens(tokens)
        vocab = self.architecture.vocab
        out = np.empty((len(fed), vocab), np.float32)
        session = self.runtime.begin(len(fed))
        step = max(1, scoring.CHUNK_FLOATS // vocab)
        for at in range(0, len(fed), step):
            out[at : at + step] = session.feed(fed[at : at + step], every=True)
        return out

    def _tokens(self, tokens: Sequence[int] | I64) -> I64:
        try:
            fed = np.asarray(tokens)
        except ValueError:
            fed = np.array([])
        if fed.ndim != 1 or not len(fed) or fed.dtype.kind not in "iu":
            raise BadInput("tokens are one flat list of token ids", "give at least one whole number")
        if len(fed) > self.architecture.context:
            raise BadInput(f"{len(fed)} tokens, the context is {self.architecture.context}", "give fewer")
        if fed.min() < 0 or fed.max() >= self.architecture.vocab:
            raise BadInput(
                f"token id {int(fed.min()) if fed.min() < 0 else int(fed.max())}",
                f"ids are 0..{self.architecture.vocab - 1}",
            )
        return fed.astype(np.int64)

    def perplexity(self, text: str, window: int | None = None) -> float:
        """exp(-mean ln p) over every scored token of `text` (see `headway.llm.scoring`, also for the window)."""
        return float(np.exp(-self.log_probabilities(text, window).mean()))

    def log_probabilities(self, text: str, window: int | None = None) -> scoring.F64:
        """ln p of each scored token, in order: what paired statistics need."""
        return scoring.log_probabilities(self, scoring.windows(self, text, window))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stream: Callable[[str], object] | None = None,
        **sampling: Any,
    ) -> str:
        """The continuation of `prompt`, greedy unless a temperature is given; fields of `Sampling` by name."""
        return self.complete(prompt, max_tokens=max_tokens, stream=stream, **sampling).text

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stream: Callable[[str], object] | None = None,
        start: bool = True,
        ignore_end: bool = False,
        **sampling: Any,
    ) -> Generation:
        """As `generate`, with the tokens and why it ended. `start` puts the beginning-of-sequence token first."""
        chosen = parse_sampling(sampling)
        tokens = self._prompt(prompt, start)
        return generation.generate(self, tokens, chosen, max_tokens=max_tokens, stream=stream, ignore_end=ignore_end)

    def _prompt(self, prompt: str | Sequence[int], start: bool) -> Sequence[int]:
        if not isinstance(prompt, str):
            if not hasattr(prompt, "__len__"):
                raise BadInput(
                    f"a prompt is text or a list of tokens, not {type(prompt).__name__}", 'give e.g. "Hello"'
                )
            generation.check_room(self, len(prompt), None)
            return [int(token) for token in self._tokens(prompt)]
        least = self.tokenizer.least_tokens(prompt)
        if least >= self.architecture.context:
            raise BadInput(
                f"the prompt has at least {least} tokens, the context {self.architecture.context}", "shorten it"
            )
        return self.encode(prompt, start=start)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        stream: Callable[[str], object] | None = None,
        **sampling: Any,
    ) -> str:
        """The assistant's next message. Raises `BadInput` when the model has no chat template or it refuses."""
        prompt = self.render(messages)
        return self.complete(prompt, max_tokens=max_tokens, stream=stream, start=False, **sampling).text

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt that the chat template makes of `messages`; options as `ChatTemplate.render`."""
        if self.template is None:
            raise BadInput(f"{self.name} has no chat template", "use a chat model, or generate from plain text")
        return self.template.render(messages, **options)


def parse_sampling(values: Mapping[str, Any]) -> Sampling:
    """`Sampling` from keyword arguments; raises `BadInput` naming the known fields. `stop` may be one text."""
    known = Sampling.__dataclass_fields__
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise BadInput(f"no sampling parameter {unknown[0]!r}", f"parameters are: {', '.join(known)}")
    stop = values.get("stop", ())
    return Sampling(**{**values, "stop": (stop,) if isinstance(stop, str) else stop})

"""A model's two towers over whole sets and lists of texts, in batches, without leaving a trace in the training."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from harness.base.errors import DataError, TrainingError
from harness.config.evaluation import Precision
from harness.evaluation.cache import FeatureCache
from harness.evaluation.distributed import Crew, ImageShare, Order, TextShare, TokenWiseShare
from harness.evaluation.sets import EvaluationSet
from harness.evaluation.token_wise import TextTokens, averaged, similarities, text_strips
from harness.parallel.process_group import World

CACHE_BYTES = 512 * 2**20


class EvaluatedTowers(Protocol):
    """What an evaluation needs of a model with embedding width d and context length L."""

    @property
    def transform_name(self) -> str:
        """Says all that `preprocess` does (size, crop, interpolation, mean, std): it is part of the protocol."""

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """From an RGB image to [3, H, W]; deterministic, called from several threads."""

    @property
    def tokenize(self) -> Callable[[list[str]], Tensor]:
        """From M texts to tokens [M, L], int64."""

    def cuts(self, texts: list[str], /) -> list[bool]:
        """Whether each text is longer than the context, so that its end is left out."""

    @property
    def trims(self) -> bool:
        """Whether text features stay as they are when tokens behind the end of a text, its largest id, are cut off."""

    def encode_image(self, images: Tensor, /) -> Tensor:
        """From images [N, 3, H, W] to features [N, d]; normalised or not."""

    def encode_text(self, tokens: Tensor, /) -> Tensor:
        """From tokens [M, L], or fewer where it `trims`, to features [M, d]; normalised or not."""

    def require_tokens(self, user: str, instead: str, /) -> None:
        """Raises ModelError where the towers give no features of tokens to `user`; `instead` is what else helps."""

    def encode_image_tokens(self, images: Tensor, /) -> Tensor:
        """From images [N, 3, H, W] to features of the image and its p patches, [N, 1 + p, d]; normalised or not."""

    def encode_text_tokens(self, tokens: Tensor, /) -> Tensor:
        """From tokens as in `encode_text` to features of texts and of all tokens, padding too, [M, 1 + L, d]."""

    def modules(self) -> Iterator[nn.Module]:
        """Every module whose training flag matters; an nn.Module has this method."""


@contextlib.contextmanager
def undisturbed(model: EvaluatedTowers, device: torch.device) -> Iterator[None]:
    """Evaluation mode and full float32 precision inside; random state, modes and settings as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        try:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = convolutions


@contextlib.contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """The towers' arithmetic inside, full float32 afterwards. On a CPU, `tf32` is float32."""
    tf32 = precision == "tf32" and device.type == "cuda"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        try:
            if tf32:
                torch.set_float32_matmul_precision("high")
                torch.backends.cudnn.allow_tf32 = True
            yield
        finally:
            if tf32:
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features, dim=-1)


def _lengths(tokens: Tensor) -> Tensor:
    """How many of the tokens [M, L] of each text come up to its end, which has the largest id, [M]."""
    return tokens.argmax(dim=1) + 1


def _require(finite: Tensor, tower: str) -> None:
    """Refuse features with a NaN, which would win every comparison that ranks are counted by."""
    if not bool(finite):
        what, fix = f"the model's {tower} features are not finite", "lower train.lr or clip gradients"
        raise TrainingError(what, where="evaluation", fix=fix)


def distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The U different texts in their first order, and for each of the M texts which one it is, [M].

    Equal texts must tie exactly, and a matrix product gives equal columns scores that differ in the last bit
    (measured here on 80 of 300 shapes): so each different text is encoded and scored once.
    """
    place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return list(place), torch.tensor([place[text] for text in texts])


def filled(order: Tensor, lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """`order` [M] cut into batches of at most `budget` tokens, or of one text; `lengths` [M] ascend along it."""
    start = 0
    while start < len(order):
        # of the texts from here on, as many as fit when each is as long as the last of them
        ascending = lengths[order[start : start + budget]]
        fitting = int((ascending * torch.arange(1, len(ascending) + 1) <= budget).sum())
        yield order[start : start + max(1, fitting)]
        start += max(1, fitting)


def images_name(evaluation_set: EvaluationSet) -> str:
    """What the cache of features calls those of a set's images."""
    return f"images {evaluation_set.digest}"


class SetEncoder:
    """Unit features of one model whose weights may change between calls.

    Preprocessed images of sets that fit into `cache_bytes` together are decoded once and kept. Features of sets that
    are asked for again stay until `forget`, and those of a `cache` on disk are only computed where it has none.

    Of several processes the first asks for features, inside `leading`, and has those of all; the others `follow`. Each
    takes some of the batches that one process would make, so that features are the same however many there are.
    """

    def __init__(
        self,
        model: EvaluatedTowers,
        *,
        batch_size: int,
        device: torch.device,
        precision: Precision = "float32",
        cache_bytes: int = CACHE_BYTES,
        cache: FeatureCache | None = None,
        sets: Sequence[EvaluationSet] = (),
        world: World | None = None,
    ) -> None:
        """`sets`: those that will be asked for, each as often as that."""
        self._model, self._batch_size, self._device = model, batch_size, device
        self._asked_for = Counter(one.digest for one in sets)
        self._cache, self._known = cache, dict[str, Tensor]()
        self._precision, self._free_bytes = precision, cache_bytes
        self._pixels: dict[str, list[Tensor]] = {}
        self._sets, self._crew = {one.digest: one for one in sets}, Crew(world or World(), device)
        self.leading, self.leads = self._crew.leading, self._crew.leads
        self.encoded: Counter[str] = Counter()
        """How many images and texts this process has put through the towers."""

    def images(self, evaluation_set: EvaluationSet) -> Tensor:
        """Unit features [N, d], float32, of a set's images in its order."""
        if (known := self._known.get(evaluation_set.digest)) is not None:
            return known
        self._sets[evaluation_set.digest] = evaluation_set
        order = ImageShare(evaluation_set.digest, len(evaluation_set), evaluation_set.name)
        features = self.cached(images_name(evaluation_set), lambda: self._ordered(order))
        if self._asked_for[evaluation_set.digest] > 1:
            self._known[evaluation_set.digest] = features
        return features

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features [M, d], float32, of `texts`.

        Batches hold texts of like length without their padding, where the model allows that, and so many of them that
        there are as many tokens as in `batch_size` texts of full length.
        """
        return self._ordered(TextShare(tuple(texts)))

    def token_wise(
        self, evaluation_set: EvaluationSet, texts: Sequence[str], *, together: int = 1, both: bool = False
    ) -> Tensor:
        """Token-wise similarities (`harness.evaluation.token_wise`) of a set's N images with M texts, float32.

        Features of tokens are never kept: of images there are those of one batch, of texts `TEXT_TOKENS_AT_ONCE`. More
        texts cost another pass over the images.

        Args:
            together: how many consecutive texts, the prompts of a class, have the mean of their similarities.
            both: s^T too, behind s^I.

        Returns:
            [N, 1 or 2, M / together]
        """
        self._sets[evaluation_set.digest] = evaluation_set
        images = ImageShare(evaluation_set.digest, len(evaluation_set), evaluation_set.name)
        return self._ordered(TokenWiseShare(images, tuple(texts), together, both))

    def forget(self) -> None:
        """The weights may change from here on."""
        self._known.clear()

    def cached(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, or what the cache on disk has of it under the name `what`."""
        return compute() if self._cache is None else self._cache.get(what, compute).to(self._device)

    def follow(self) -> None:
        """Encode this process's share of whatever the first one asks for, until it ends.

        Raises:
            Exception: what ended the first process, or any other.
        """
        for order in self._crew.orders():
            self._carried_out(order)

    def _ordered(self, order: Order) -> Tensor:
        self._crew.order(order)
        return self._carried_out(order)

    def _carried_out(self, order: Order) -> Tensor:
        match order:
            case ImageShare():
                return self._encoded_images(order)
            case TextShare():
                return self._encoded_texts(order.texts)
            case TokenWiseShare():
                return self._compared(order)

    def _encoded_images(self, order: ImageShare) -> Tensor:
        def encode(batches: range) -> list[Tensor]:
            return self._features(self._model.encode_image, self._images(order, batches), "image")

        return self._crew.gathered(-(-order.count // self._batch_size), encode)

    def _images(self, order: ImageShare, batches: range) -> Iterator[Tensor]:
        if order.digest not in self._sets:
            fix = "copy the set again to every node"
            raise DataError("the processes of the run see different samples", where=order.name, fix=fix)
        return self._batches(self._sets[order.digest], batches)

    def _tokenized(self, texts: tuple[str, ...]) -> Tensor:
        """Tokens [M, L], on the CPU."""

        def tokenize(part: range) -> list[Tensor]:
            return [self._model.tokenize(list(texts[part.start : part.stop]))] if part else []

        return self._crew.gathered(len(texts), tokenize, cpu=True)

    def _encoded_texts(self, texts: tuple[str, ...]) -> Tensor:
        tokens = self._tokenized(texts)
        needed = self._needed(_lengths(tokens), tokens.shape[1])
        order = torch.argsort(needed, stable=True)
        features = self._in_batches(self._model.encode_text, tokens, needed, order)
        return features[torch.argsort(order).to(features.device)]

    def _needed(self, lengths: Tensor, context: int) -> Tensor:
        """How many tokens of texts of these lengths [M] the towers need, [M]."""
        return lengths if self._model.trims else torch.full_like(lengths, context)

    def _in_batches(self, encode: Callable[[Tensor], Tensor], tokens: Tensor, needed: Tensor, order: Tensor) -> Tensor:
        """What `encode` makes of tokens [M, L], text by text in `order` [M], along which `needed` [M] ascends."""

        def encoded(part: range) -> list[Tensor]:
            taken = (tokens[batches[index], : int(needed[batches[index][-1]])] for index in part)
            return self._features(encode, taken, "text")

        batches = list(filled(order, needed, self._batch_size * tokens.shape[1]))
        return self._crew.gathered(len(batches), encoded)

    def _compared(self, order: TokenWiseShare) -> Tensor:
        tokens = self._tokenized(order.texts)
        found = []
        for strip in text_strips(_lengths(tokens).tolist(), order.together):
            texts = self._text_tokens(tokens[strip])

            def compare(batches: range, texts: TextTokens = texts) -> list[Tensor]:
                def compared(patches: Tensor) -> Tensor:
                    return averaged(similarities(_unit(patches), texts, both=order.both), order.together)

                images = self._images(order.images, batches)
                return self._features(self._patches, images, "image", then=compared)

            found.append(self._crew.gathered(-(-order.images.count // self._batch_size), compare))
        return torch.cat(found, dim=2)

    def _text_tokens(self, tokens: Tensor) -> TextTokens:
        """Unit features of the tokens [M, L] up to each text's end, which has the largest id."""
        lengths = _lengths(tokens)
        order = torch.argsort(lengths, stable=True)
        needed = self._needed(lengths, tokens.shape[1])
        return TextTokens(self._in_batches(self._words, tokens, needed, order), lengths[order], order)

    def _patches(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, p, d]."""
        return self._model.encode_image_tokens(images)[:, 1:]

    def _words(self, tokens: Tensor) -> Tensor:
        """[M, L] to [T, d]: the tokens of one text after another, without padding."""
        ends = tokens.argmax(dim=1, keepdim=True)
        is_token = torch.arange(tokens.shape[1], device=tokens.device) <= ends
        return self._model.encode_text_tokens(tokens)[:, 1:][is_token]

    def _features(
        self,
        encode: Callable[[Tensor], Tensor],
        batches: Iterable[Tensor],
        tower: str,
        then: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Unit features of each batch, or what `then` makes of its features as they come, in float32.

        The host waits for a batch after it has sent the next one: so it decodes and copies while a GPU computes, and
        pinned memory never holds more than two batches.
        """
        found: list[Tensor] = []
        waiting: list[Tensor] = []
        for batch in batches:
            with computing(self._precision, self._device):
                features = encode(self._sent(batch))
            found.append((then or _unit)(features.float()))
            self.encoded[tower] += len(batch)
            waiting.append(torch.isfinite(features).all())
            if len(waiting) == 2:
                _require(waiting.pop(0), tower)
        for finite in waiting:
            _require(finite, tower)
        return found

    def _sent(self, batch: Tensor) -> Tensor:
        """`batch` on the device; a GPU copies it from pinned memory, for which the host does not wait."""
        on_gpu = self._device.type == "cuda"
        return (batch.pin_memory() if on_gpu else batch).to(self._device, non_blocking=on_gpu)

    def _batches(self, evaluation_set: EvaluationSet, part: range) -> Iterator[Tensor]:
        """Preprocessed images [<= batch_size, 3, H, W] of this process's batches, always the same of a set."""
        if evaluation_set.digest in self._pixels:
            yield from self._pixels[evaluation_set.digest]
            return
        kept: list[Tensor] | None = []
        images = min(part.stop * self._batch_size, len(evaluation_set)) - part.start * self._batch_size
        for batch in self._decoded(evaluation_set, part):
            needed = batch[0].nbytes * images
            kept = None if kept is None or needed > self._free_bytes else [*kept, batch]
            yield batch
        if kept is not None:
            self._pixels[evaluation_set.digest] = kept
            self._free_bytes -= sum(batch.nbytes for batch in kept)

    def _decoded(self, evaluation_set: EvaluationSet, part: range) -> Iterator[Tensor]:
        """Batches decoded by threads, one batch ahead of the model."""
        preprocess = self._model.preprocess

        def load(index: int) -> Tensor:
            return preprocess(evaluation_set.image(index))

        def submit(batch: int) -> list[Future[Tensor]]:
            start, end = batch * self._batch_size, (batch + 1) * self._batch_size
            return [pool.submit(load, index) for index in range(start, min(end, len(evaluation_set)))]

        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode") as pool:
            try:
                ahead = submit(part.start) if part else []
                for batch in part:
                    current, ahead = ahead, submit(batch + 1) if batch + 1 in part else []
                    yield torch.stack([future.result() for future in current])
            finally:
                pool.shutdown(cancel_futures=True)

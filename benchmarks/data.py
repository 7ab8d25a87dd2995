"""Reading, teacher features and analysis: how fast, against whom, and how it grows. Every number of docs/data.md.

    python benchmarks/data.py loader      images/s: the harness, webdataset, open_clip_train's stages, round by round
    python benchmarks/data.py features    seconds of feature extraction against samples
    python benchmarks/data.py analysis    seconds of the analysis against samples
    python benchmarks/data.py index       microseconds a row of the index of tables, by one process and several

All readers take the same shards (made here: JPEGs of 256 px), the same number of processes, and give batches of float
pixels at 224 px by a random resized crop. webdataset and open_clip_train shuffle within a buffer; the harness keeps
an exact order that can be resumed.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from harness.analysis import Options, analyse
from harness.base.machine import cores
from harness.config.augment import CropAugment
from harness.config.data import TableData, WebdatasetData
from harness.config.model import Model
from harness.data.dataset import index_parts
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.dataset.loader import ImageBatches
from harness.data.dataset.order import epoch_order
from harness.data.sources.inspection import inspect_data
from harness.data.synthetic.layout import write_shards
from harness.features.compute import Extraction, Wanted
from harness.models import build_towers

SIZE, BATCH = 224, 64
WORDS = ("a", "red", "blue", "green", "dog", "cat", "car", "tree", "house", "near", "under", "big", "old", "photo")
CPU = torch.device("cpu")


def picture(number: int, side: int) -> bytes:
    """A JPEG of its own for each number, as compressible as a photograph."""
    chance = np.random.default_rng(number)
    coarse = Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = np.clip(pixels + chance.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def caption(chance: np.random.Generator) -> str:
    return " ".join(chance.choice(WORDS, 8))


def made(folder: Path, samples: int, side: int) -> WebdatasetData:
    chance = np.random.default_rng(0)
    members = [
        (
            f"{number:09d}",
            {
                "jpg": picture(number, side),
                "txt": caption(chance).encode(),
                "json": json.dumps({"captions": [caption(chance) for _ in range(5)]}).encode(),
            },
        )
        for number in range(samples)
    ]
    write_shards(folder, members, max(samples // 8, 1))
    return WebdatasetData(shards=str(folder))


def loader(samples: int, workers: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as where:
        data = made(Path(where) / "shards", samples, 256)
        dataset = open_dataset(data, Path(where) / "cache")
        urls = sorted(str(path) for path in Path(data.shards).glob("*.tar"))
        readers: dict[str, Callable[[], Iterable[Any]]] = {
            "harness": lambda: ours(dataset, workers),
            "webdataset": lambda: webdatasets(urls, workers),
            "open_clip_train's stages": lambda: open_clips(urls, workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(rounds):
            for name, reader in readers.items():
                rates[name].append(rate(reader(), samples // BATCH))
    print("| reader | images/s | harness / it, each round |\n|---|---|---|")
    for name, found in rates.items():
        ratios = ", ".join(f"{mine / theirs:.2f}" for mine, theirs in zip(rates["harness"], found, strict=True))
        print(f"| {name} | {statistics.median(found):.0f} | {ratios} |")


def rate(batches: Iterable[Any], count: int) -> float:
    """Images per second after the first batch, which pays for starting the processes."""
    taken = iter(batches)
    next(taken)
    start, seen = time.perf_counter(), 0
    for batch in islice(taken, count - 2):
        seen += len(batch[0] if isinstance(batch, list | tuple) else batch)
    return seen / (time.perf_counter() - start)


def ours(dataset: Dataset, workers: int) -> Iterator[torch.Tensor]:
    order = epoch_order(len(dataset), 0, 0)
    drawn = ((0, order[start : start + BATCH]) for start in range(0, len(order) - BATCH + 1, BATCH))
    for pixels in ImageBatches(dataset, CropAugment(), image_size=SIZE, workers=workers)(drawn):
        yield pixels.float() / 255


def transform() -> Callable[[Image.Image], torch.Tensor]:
    from torchvision import transforms as tv  # type: ignore[import-untyped]

    crop = tv.RandomResizedCrop(SIZE, scale=(0.5, 1.0), interpolation=tv.InterpolationMode.BICUBIC)
    return tv.Compose([crop, tv.RandomHorizontalFlip(), tv.ToTensor()])  # type: ignore[no-any-return]


def webdatasets(urls: list[str], workers: int) -> Iterable[Any]:
    import webdataset as wds

    read = wds.WebDataset(urls, shardshuffle=len(urls), workersplitter=wds.split_by_worker, seed=0).shuffle(1000)
    stages = read.decode("pil").to_tuple("jpg", "txt").map_tuple(transform(), str).batched(BATCH, partial=False)
    return wds.WebLoader(stages, batch_size=None, num_workers=workers)  # type: ignore[no-any-return]


def open_clips(urls: list[str], workers: int) -> Iterable[Any]:
    """The stages of open_clip_train 3.3's get_wds_dataset, which itself does not run with webdataset 1.x."""
    import webdataset as wds

    stages = wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(bufsize=5000, initial=1000),
        wds.select(lambda sample: "txt" in sample and "jpg" in sample),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=transform(), text=str),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    return wds.WebLoader(stages, batch_size=None, num_workers=workers, persistent_workers=True)  # type: ignore[no-any-return]


CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def growth(samples: list[int], *, analysed: bool) -> None:
    print("| samples | seconds | microseconds a sample |\n|---|---|---|")
    for count in samples:
        with tempfile.TemporaryDirectory() as where:
            dataset = open_dataset(made(Path(where) / "shards", count, 64), Path(where) / "cache")
            wanted = Wanted(Path(where) / "features", dataset, ("raw", "captions"))
            extraction = Extraction(wanted, build_towers(Model(name="bench", config=CONFIG)), CPU)
            start = time.perf_counter()
            extraction.compute()
            if analysed:
                start = time.perf_counter()
                analyse(wanted, Options(), CPU)
            seconds = time.perf_counter() - start
        print(f"| {count:,} | {seconds:.1f} | {1e6 * seconds / count:.0f} |", flush=True)


def indexing(samples: list[int], tables: int = 4) -> None:
    """Parquet tables with a key, a short caption and the path of one JPEG; it is opened for each row."""
    print("| rows | processes | seconds | microseconds a row | of CPU |\n|---|---|---|---|---|")
    for count in samples:
        with tempfile.TemporaryDirectory() as where:
            folder = Path(where) / "tables"
            folder.mkdir()
            (folder / "0.jpg").write_bytes(picture(0, 256))
            chance = np.random.default_rng(0)
            texts = [caption(chance) for _ in range(1000)]
            for number in range(tables):
                keys = range(number * count // tables, (number + 1) * count // tables)
                rows = {
                    "key": [str(key) for key in keys],
                    "image": ["0.jpg"] * len(keys),
                    "caption": [texts[key % 1000] for key in keys],
                }
                pq.write_table(pa.table(rows), folder / f"{number}.parquet")
            data = TableData(path=str(folder), image_root=str(folder), key="key")
            found = set()
            for processes, worth in ((1, float("inf")), (min(cores(), tables), 0)):
                index_parts.WORTH_BYTES = worth  # type: ignore[assignment]
                start, spent = time.perf_counter(), cpu_s()
                found.add(inspect_data(data, Path(where) / str(processes)).fingerprint)
                seconds, spent = time.perf_counter() - start, cpu_s() - spent
                each = f"{1e6 * seconds / count:.1f} | {1e6 * spent / count:.1f}"
                print(f"| {count:,} | {processes} | {seconds:.1f} | {each} |", flush=True)
            assert len(found) == 1


def cpu_s() -> float:
    """CPU seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loader", "features", "analysis", "index"])
    parser.add_argument("--samples", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    stated = parser.parse_args()
    if stated.what == "loader":
        loader((stated.samples or [4096])[0], stated.workers, stated.rounds)
    elif stated.what == "index":
        indexing(stated.samples or [1_000_000])
    else:
        growth(stated.samples or [2500, 5000, 10_000, 20_000], analysed=stated.what == "analysis")


if __name__ == "__main__":
    main()

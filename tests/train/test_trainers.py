"""Real trainers on our data: plain torch, two ranks, transformers' Trainer, accelerate, lightning.

Each is stopped in the middle and goes on from its checkpoint; the losses equal the uninterrupted run's to the bit.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lance_prep.train import LanceDataset, Mixture, TakeSampler, TokenLoader
from tests.train.made import BLOCK, Made, make_tokens
from tests.train.tiny_gpt import seeded

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_tokens(tmp_path_factory.mktemp("data") / "c.lance", "blocks", [17, 20], block_size=BLOCK, seed=5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run_script(corpus: Made, folder: Path, steps: int, kill_after: int | None, ranks: int) -> int:
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    arguments = [str(corpus.path), str(folder), str(steps), *([str(kill_after)] if kill_after else [])]
    command = [sys.executable, *launcher, str(HERE / "train_script.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, env=environment, capture_output=True).returncode


def losses(folder: Path, rank: int = 0) -> list[list[float]]:
    return [json.loads(line) for line in (folder / f"losses-{rank}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed_losses_are_equal_to_the_bit(corpus: Made, tmp_path: Path, ranks: int) -> None:
    """13 steps over 37 samples of 4 a step: over the end of an epoch, killed by SIGKILL in it."""
    assert run_script(corpus, tmp_path / "whole", 13, None, ranks) == 0
    assert run_script(corpus, tmp_path / "cut", 13, 6, ranks) == (-signal.SIGKILL if ranks == 1 else 1)
    assert all([step for step, _ in losses(tmp_path / "cut", rank)] == list(range(1, 7)) for rank in range(ranks))
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=False)["done"] == 6
    assert run_script(corpus, tmp_path / "cut", 13, None, ranks) == 0
    for rank in range(ranks):
        whole = losses(tmp_path / "whole", rank)
        assert [step for step, _ in whole] == list(range(1, 14))
        assert losses(tmp_path / "cut", rank) == whole


def rows_of_ranks(corpus: Made, folder: Path, trainer: str) -> list[dict[str, Any]]:
    """Run `rank_script.py` on two ranks, and return what each of them saw."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if trainer == "torchrun" else []
    command = [sys.executable, *launcher, str(HERE / "rank_script.py"), str(corpus.path), str(folder), trainer]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    files = [folder / f"{trainer}-{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), done.stderr
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("trainer", ["torchrun", "lightning"])
def test_two_ranks_see_exactly_their_rows_in_every_trainer(corpus: Made, tmp_path: Path, trainer: str) -> None:
    for module in ("accelerate", "transformers", "lightning"):
        pytest.importorskip(module)
    found = rows_of_ranks(corpus, tmp_path, trainer)
    ds = LanceDataset(corpus.path)
    for rank, ways in enumerate(found):
        batches = TakeSampler(ds, 4, seed=7, rank=rank, world_size=2)
        want = [ds.take(indices)["input_ids"].tolist() for indices in batches]
        assert len(want) == 9
        seen = {way: rows for way, rows in ways.items() if "refuses" not in way}
        assert len(seen) == (6 if trainer == "torchrun" else 3)
        assert [way for way, rows in seen.items() if rows != want] == []
    # A second division of TakeSampler's batches is refused, with what to use instead.
    name = "accelerate" if trainer == "torchrun" else "lightning"
    message, advice = found[0][f"{name} refuses"]
    assert "divided each global batch among 2 ranks already" in message
    assert "TokenLoader" in advice
    assert "use_distributed_sampler=False" in advice


def test_two_ranks_learn_from_the_rows_of_one(corpus: Made) -> None:
    """Mean gradients of the ranks' parts are the gradient of the global batch."""
    ds = LanceDataset(corpus.path)
    model = seeded()
    whole = next(iter(TokenLoader(ds, 4, seed=7)))
    parts = [next(iter(TokenLoader(ds, 4, seed=7, rank=r, world_size=2))) for r in range(2)]
    want = model(**whole)["loss"].item()
    assert sum(model(**part)["loss"].item() for part in parts) / 2 == pytest.approx(want, rel=1e-4)


def test_plain_torch_learns(corpus: Made) -> None:
    model = seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(6):
        for batch in DataLoader(LanceDataset(corpus.path), batch_size=8, shuffle=True):
            loss = model(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    assert history[-1] < history[0] - 0.2


def test_a_transformers_trainer_trains_and_resumes(corpus: Made, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def run(stop: int | None, resume: bool) -> list[float]:
        class Recorder(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if "loss" in logs:
                    seen.append(logs["loss"])

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == stop:
                    control.should_training_stop = True

        seen: list[float] = []
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / ("cut" if stop or resume else "whole")),
            max_steps=12,
            per_device_train_batch_size=4,
            logging_steps=1,
            save_steps=5,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
        )
        trainer = transformers.Trainer(
            model=seeded(), args=arguments, train_dataset=LanceDataset(corpus.path), callbacks=[Recorder()]
        )
        trainer.train(resume_from_checkpoint=resume)
        return seen

    whole = run(None, False)
    assert len(whole) == 12
    assert run(5, False) == whole[:5]
    assert run(None, True) == whole[5:]


def test_accelerate_trains_and_resumes(corpus: Made) -> None:
    accelerate = pytest.importorskip("accelerate")

    def run(first: int, steps: int, state: dict[str, Any] | None) -> tuple[list[float], dict[str, Any]]:
        accelerator = accelerate.Accelerator(cpu=True)
        model = seeded()
        loader = TokenLoader(LanceDataset(corpus.path), 4, seed=7)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
        model, optimizer = accelerator.prepare(model, optimizer)
        out = []
        for batch in itertools.islice(loader, steps - first):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            out.append(loss.item())
        kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
        return out, copy.deepcopy(kept)

    whole, _ = run(0, 8, None)
    start, state = run(0, 5, None)
    rest, _ = run(5, 8, state)
    assert start + rest == whole


def test_accelerate_prepares_a_dataloader_with_our_sampler(corpus: Made) -> None:
    accelerate = pytest.importorskip("accelerate")
    ds = LanceDataset(corpus.path)
    loader = accelerate.Accelerator(cpu=True).prepare(DataLoader(ds, batch_sampler=TakeSampler(ds, 4, seed=7)))
    got = [batch["input_ids"].tolist() for batch in loader]
    assert got == [batch["input_ids"].tolist() for batch in TokenLoader(ds, 4, seed=7)]


def test_lightning_trains_and_resumes(corpus: Made, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = seeded()
            self.seen: list[float] = []

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            loss = self.model(**batch)["loss"]
            self.seen.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Data(lightning.LightningDataModule):  # type: ignore[name-defined, misc]
        """The loader's state travels in lightning's checkpoint."""

        def __init__(self) -> None:
            super().__init__()
            mix = Mixture({str(corpus.path): 1.0}, seed=7)
            self.loader = TokenLoader(mix, 4)

        def train_dataloader(self) -> TokenLoader:
            return self.loader

        def state_dict(self) -> dict[str, Any]:
            return self.loader.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.loader.load_state_dict(state)

    def run(steps: int, checkpoint: Path | None) -> tuple[list[float], Any]:
        module = Module()
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=Data(), ckpt_path=checkpoint, weights_only=False)
        return module.seen, trainer

    whole, _ = run(8, None)
    assert len(whole) == 8
    start, trainer = run(5, None)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    rest, _ = run(8, tmp_path / "cut.ckpt")
    assert start + rest == whole

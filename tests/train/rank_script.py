"""Record the rows that each rank sees in a real trainer, for TokenLoader and TakeSampler.

torchrun --nproc-per-node=2 rank_script.py DATASET FOLDER torchrun
python rank_script.py DATASET FOLDER lightning
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny_gpt import seeded
from torch.utils.data import DataLoader

from lance_prep.errors import UsageError
from lance_prep.train import LanceDataset, TakeSampler, TokenLoader

Rows = list[list[list[int]]]


def loaders(dataset: str) -> dict[str, Any]:
    """Return one of each kind, all over the same order: 9 steps of 4 samples."""
    ds = LanceDataset(dataset)
    return {
        "TokenLoader": TokenLoader(ds, 4, seed=7),
        "TakeSampler": DataLoader(ds, batch_sampler=TakeSampler(ds, 4, seed=7)),
    }


def seen_by(loader: Any) -> Rows:
    return [batch["input_ids"].tolist() for batch in loader]


def refusal(call: Any) -> list[str]:
    try:
        call()
    except UsageError as error:
        return [str(error), error.advice]
    return []


def in_transformers(loader: Any) -> Rows:
    import transformers

    seen: Rows = []

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return loader

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            seen.append(inputs["input_ids"].tolist())
            return super().training_step(model, inputs, *rest)

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=1, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
        )
        Trainer(model=seeded(), args=arguments).train()
    return seen


def in_lightning(loader: Any, *, use_distributed_sampler: bool) -> Rows:
    import lightning

    seen: Rows = []

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = seeded()

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> Any:
            seen.append(batch["input_ids"].tolist())
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=use_distributed_sampler,
    )
    trainer.fit(Module(), loader)
    return seen


def with_torchrun(dataset: str) -> dict[str, Any]:
    import accelerate

    found: dict[str, Any] = {}
    for name, loader in loaders(dataset).items():  # before the process group: ranks come from the environment
        found[f"torchrun {name}"] = seen_by(loader)
    accelerator = accelerate.Accelerator(cpu=True)
    made = loaders(dataset)
    found["accelerate TokenLoader"] = seen_by(accelerator.prepare(made["TokenLoader"]))
    found["accelerate refuses"] = refusal(lambda: accelerator.prepare(made["TakeSampler"]))
    found["accelerate TakeSampler"] = seen_by(made["TakeSampler"])
    for name, loader in loaders(dataset).items():
        found[f"transformers {name}"] = in_transformers(loader)
    return found


def with_lightning(dataset: str, keep: Any) -> None:
    made = loaders(dataset)  # before Lightning starts the other rank
    found = {f"lightning {name}": in_lightning(x, use_distributed_sampler=False) for name, x in made.items()}
    made = loaders(dataset)
    found["lightning default TokenLoader"] = in_lightning(made["TokenLoader"], use_distributed_sampler=True)
    keep(found)
    # The last one: an error ends the other rank.
    keep(
        found | {"lightning refuses": refusal(lambda: in_lightning(made["TakeSampler"], use_distributed_sampler=True))}
    )


def main() -> None:
    dataset, folder, trainer = sys.argv[1:]
    torch.set_num_threads(1)

    def keep(found: dict[str, Any]) -> None:
        rank = torch.distributed.get_rank()
        (Path(folder) / f"{trainer}-{rank}.json").write_text(json.dumps(found))

    if trainer == "lightning":
        with_lightning(dataset, keep)
    else:
        keep(with_torchrun(dataset))


if __name__ == "__main__":
    main()

"""Train a tiny GPT from a dataset, on one rank or under torchrun; checkpoint each step; be killed where told.

python train_script.py DATASET FOLDER STEPS [KILL_AFTER]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from tiny_gpt import seeded

from lance_prep.train import LanceDataset, TokenLoader


def main() -> None:
    dataset, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    kill_after = int(sys.argv[4]) if len(sys.argv) > 4 else -1
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    model: torch.nn.Module = seeded()
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = TokenLoader(LanceDataset(dataset), 4, seed=7)
    done = 0
    if (folder / "checkpoint.pt").exists():
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=False)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        loader.load_state_dict(checkpoint["loader"])
        done = checkpoint["done"]
    while done < steps:
        for batch in loader:
            loss = model(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            with (folder / f"losses-{rank}.jsonl").open("a") as out:
                out.write(json.dumps([done, loss.item()]) + "\n")
            if rank == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "loader": loader.state_dict(), "done": done}, folder / "new.pt")
                (folder / "new.pt").replace(folder / "checkpoint.pt")
            if ranks > 1:
                torch.distributed.barrier()
            if done == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if done == steps:
                break


if __name__ == "__main__":
    main()

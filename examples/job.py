"""What the example scripts share: ranks, checkpoints, and a log of what was trained on.

A job saves model, optimizer and the loader's position together, every so many steps. Started again,
on any number of ranks, it goes on from the newest checkpoint that is whole.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import ffs.torch

Loss = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]


def arguments(description: str | None) -> argparse.Namespace:
    """The command line of both examples."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("command", choices=["make", "train"])
    parser.add_argument("data", help="URL of the records, e.g. ffs:///data/train.ffr")
    parser.add_argument("run", nargs="?", help="URL of the directory of checkpoints")
    parser.add_argument("--samples", type=int, default=10_000, help="how many to make")
    parser.add_argument("--batch-size", type=int, default=32, help="samples a step and rank")
    parser.add_argument("--workers", type=int, default=1, help="of each rank's loader")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--log", help="file to which each rank adds a line a step; .RANK is added")
    return parser.parse_args()


def train(options: argparse.Namespace, data: Any, model: torch.nn.Module, loss_of: Loss) -> None:
    """Train to the end, from the newest checkpoint if there is one."""
    distributed = "RANK" in os.environ
    if distributed:
        dist.init_process_group("gloo")
    sampler = ffs.torch.ElasticSampler(len(data), seed=0)
    loader = ffs.torch.DataLoader(
        data, options.batch_size, sampler=sampler, num_workers=options.workers
    )
    wrapped = DistributedDataParallel(model) if distributed else model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    step = load(options.run, wrapped, optimizer, loader)
    begun = loader.state_dict()["order"]
    while begun["epoch"] < options.epochs:
        for batch in loader:
            loss = loss_of(wrapped, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            begun = log(options.log, step, begun, loader, batch)
            if step % options.save_every == 0:
                save(f"{options.run}/step-{step}", step, wrapped, optimizer, loader)
        begun = {**begun, "epoch": begun["epoch"] + 1, "consumed": 0}
    save(f"{options.run}/step-{step}-end", step, wrapped, optimizer, loader)
    if distributed:
        dist.destroy_process_group()


def state_of(step: int, model: Any, optimizer: Any, loader: Any) -> dict[str, Any]:
    """All that a checkpoint holds."""
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "loader": loader.state_dict(), "step": step}


def save(url: str, step: int, model: Any, optimizer: Any, loader: Any) -> None:
    """Save a checkpoint, which appears when every rank's part is durable."""
    state = state_of(step, model, optimizer, loader)
    state_dict_saver.save(state, storage_writer=ffs.torch.StorageWriter(url))


def load(run: str, model: Any, optimizer: Any, loader: Any) -> int:
    """Load the newest checkpoint of a run; returns its step, 0 without one."""
    newest = [ffs.torch.latest(run)]
    if dist.is_initialized():
        dist.broadcast_object_list(newest)  # what rank 0 found, so that all load the same
    if newest[0] is None:
        return 0
    state = state_of(0, model, optimizer, loader)
    state_dict_loader.load(state, storage_reader=ffs.torch.StorageReader(newest[0]))
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    loader.load_state_dict(state["loader"])
    return int(state["step"])


def log(path: str | None, step: int, begun: Any, loader: Any, batch: torch.Tensor) -> Any:
    """Note the checksum of each sample of a step, and where in the order the step began; returns
    where the next one begins."""
    if path is not None:
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        sums = [zlib.crc32(sample.numpy()) for sample in batch]
        line = {"step": step, "rank": int(rank), "world": int(world), **begun, "samples": sums}
        with open(f"{path}.{rank}", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return loader.state_dict()["order"]

"""Trains the bundled model in a fixed time and writes it as parts small enough to carry.

    python -m training.train --minutes 4 --out DIR

The learning rate falls with the time used, so that the run ends properly whatever the speed of the machine. A
checkpoint a minute goes to the same place: a run that is cut short leaves the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training import corpus, export
from training.network import Network, Shape, document_mask, rope_table
from training.vocabulary import NEXT_DIR

WARMUP_STEPS = 200
FINAL_LR_SHARE = 0.01
CLIP_NORM = 1.0
LOG_EVERY_S = 5.0
CHECKPOINT_EVERY_S = 60.0
LONG_EVERY = 8


@dataclass(frozen=True)
class Plan:
    """What one run does. Rows are `row_tokens` long; every eighth step takes rows of 1,024 tokens."""

    minutes: float
    seed: int
    num_shards: int
    num_long_shards: int
    row_tokens: int
    batch_tokens: int
    max_lr: float
    weight_decay: float
    num_workers: int


class Batches:
    """Random rows of the corpus, held on the device; each pass sees every row once, in a new order.

    The order and the places of the targets stay on the host: asking the device for them would stall every step.
    """

    def __init__(self, rows: corpus.Rows, num_rows: int, device: torch.device, seed: int) -> None:
        self.tokens = torch.from_numpy(rows.tokens.astype(np.int16)).to(device)
        self.documents = torch.from_numpy(rows.documents).to(device)
        self.predicts = np.zeros_like(rows.targets)
        same = rows.documents[:, 1:] == rows.documents[:, :-1]
        self.predicts[:, :-1] = rows.targets[:, 1:] & same
        self.num_rows = min(num_rows, len(rows.tokens))
        self.device, self.random = device, np.random.default_rng(seed)
        self.order, self.at = np.empty(0, dtype=np.int64), 0
        self.num_passes = -1

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [rows, n] int64, the mask [rows, 1, n, n], and the flat indices whose next token is a target."""
        if self.at + self.num_rows > len(self.order):
            self.order, self.at = self.random.permutation(len(self.predicts)), 0
            self.num_passes += 1
        chosen = self.order[self.at : self.at + self.num_rows]
        self.at += self.num_rows
        rows = self._to_device(chosen)
        wanted = self._to_device(np.flatnonzero(self.predicts[chosen]))
        return self.tokens[rows].long(), document_mask(self.documents[rows]), wanted

    def _to_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def batch_loss(network: Network, batch: tuple[Tensor, Tensor, Tensor], table: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy over the targets of `batch`."""
    tokens, mask, at = batch
    hidden = network(tokens, mask, table).flatten(0, 1)[at]
    wanted = tokens.flatten()[at + 1]
    return F.cross_entropy(network.logits(hidden).float(), wanted)


def learning_rate(plan: Plan, step: int, share_done: float) -> float:
    """Warm-up by steps, then a cosine over the share of the time that is used up."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(share_done, 1.0)))
    return plan.max_lr * min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)


def make_optimizer(network: Network, plan: Plan, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.max_lr, betas=(0.9, 0.95), eps=1e-8, fused=device.type == "cuda")


class Trainer:
    def __init__(
        self, plan: Plan, shape: Shape, device: torch.device, tokenizer: Path, out: Path, use_compile: bool
    ) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.device, self.tokenizer, self.out = plan, device, tokenizer, out
        self.network = Network(shape).to(device)
        self.optimizer = make_optimizer(self.network, plan, device)
        self.table = rope_table(corpus.LONG_ROW_TOKENS, shape.head_dim, device)
        self.curve: list[dict[str, float]] = []
        self.step, self.num_tokens = 0, 0
        self.use_compile = use_compile

    def load_corpus(self) -> None:
        began = time.monotonic()
        plan = self.plan
        self.short = self._batches(plan.num_shards, plan.row_tokens)
        self.long = self._batches(plan.num_long_shards, corpus.LONG_ROW_TOKENS)
        self.corpus_s = time.monotonic() - began
        self.corpus_tokens = (plan.num_shards + plan.num_long_shards) * corpus.SHARD_TOKENS
        say(f"corpus of {self.corpus_tokens:,} tokens in {self.corpus_s:.1f} s")

    def _batches(self, num_shards: int, row_tokens: int) -> Batches:
        rows = corpus.make_rows(self.plan.seed, num_shards, row_tokens, self.plan.num_workers, self.tokenizer)
        return Batches(rows, max(1, self.plan.batch_tokens // row_tokens), self.device, self.plan.seed)

    def warm_up(self) -> None:
        """Compiles for both row lengths, before the clock starts. Where the compiler fails, training goes on without."""
        began = time.monotonic()
        if self.use_compile:
            for layer in self.network.layers:
                layer.compile(dynamic=False)
        try:
            self._forward_backward_once()
        except Exception as error:  # whatever the compiler raises: the plain layers give the same numbers
            if not self.use_compile:
                raise
            say(f"compilation failed, going on without: {type(error).__name__}: {str(error)[:300]}")
            for layer in self.network.layers:
                layer._compiled_call_impl = None
            self.use_compile = False
            self._forward_backward_once()
        say(f"warm-up in {time.monotonic() - began:.1f} s, compiled: {self.use_compile}")

    def _forward_backward_once(self) -> None:
        for batches in (self.short, self.long):
            with self.autocast():
                loss = batch_loss(self.network, batches.take(), self.table)
            loss.backward()
            self.optimizer.zero_grad(set_to_none=True)
            say(f"first loss {loss.item():.4f}")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def train_step(self, share_done: float) -> Tensor:
        batch = (self.long if self.step % LONG_EVERY == LONG_EVERY - 1 else self.short).take()
        rate = learning_rate(self.plan, self.step, share_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast():
            loss = batch_loss(self.network, batch, self.table)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.num_tokens += batch[0].numel()
        return loss.detach()

    def run(self) -> None:
        """Trains for the planned minutes."""
        began = time.monotonic()
        length_s = self.plan.minutes * 60
        next_log, next_checkpoint = LOG_EVERY_S, CHECKPOINT_EVERY_S
        recent: list[Tensor] = []
        while (used_s := time.monotonic() - began) < length_s:
            recent.append(self.train_step(used_s / length_s))
            if self.step % 20 == 0:
                recent[-1].item()  # waits for the device: the clock must see finished work, not queued work
            if used_s >= next_log:
                self.log(used_s, torch.stack(recent).mean().item())
                recent, next_log = [], used_s + LOG_EVERY_S
            if used_s >= next_checkpoint:
                export.write_parts(self.network, self.out, self.tokenizer)
                next_checkpoint += CHECKPOINT_EVERY_S
        if recent:
            self.log(time.monotonic() - began, torch.stack(recent).mean().item())
        export.write_parts(self.network, self.out, self.tokenizer)
        self.report(time.monotonic() - began)

    def log(self, used_s: float, loss: float) -> None:
        point = {
            "elapsed_s": round(used_s, 1),
            "step": self.step,
            "num_tokens": self.num_tokens,
            "loss": round(loss, 5),
        }
        self.curve.append(point)
        passes = self.short.num_passes
        say(
            f"{used_s:6.1f} s  step {self.step:6d}  {self.num_tokens / used_s:10,.0f} tokens/s  pass {passes}  loss {loss:.4f}"
        )

    def report(self, used_s: float) -> None:
        """training.json: everything that the model card tells of the run."""
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        facts = {
            "plan": asdict(self.plan), "shape": asdict(self.network.shape), "device": device,
            "torch": torch.__version__, "num_steps": self.step, "num_tokens": self.num_tokens,
            "num_passes": self.short.num_passes + self.short.at / max(1, len(self.short.order)),
            "corpus_tokens": self.corpus_tokens, "corpus_s": round(self.corpus_s, 1), "train_s": round(used_s, 1),
            "num_parameters": sum(p.numel() for p in self.network.parameters()), "curve": self.curve,
        }  # fmt: skip
        (self.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def say(line: str) -> None:
    print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time, generation of the corpus excluded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=NEXT_DIR, help="folder that holds tokenizer.json")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--num-shards", type=int, default=130, help="shards of a million tokens in short rows")
    parser.add_argument("--num-long-shards", type=int, default=20, help="the same in rows of 1,024 tokens")
    parser.add_argument("--row-tokens", type=int, default=384)
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--max-lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=1, help="processes that write the corpus")
    parser.add_argument("--compile", action="store_true", help="compile each layer with torch.compile")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(
        args.minutes, args.seed, args.num_shards, args.num_long_shards, args.row_tokens, args.batch_tokens,
        args.max_lr, args.weight_decay, args.workers,
    )  # fmt: skip
    shape = Shape(
        hidden_size=args.hidden_size, num_hidden_layers=args.layers, intermediate_size=args.hidden_size * 3,
        num_attention_heads=args.hidden_size // 64, num_key_value_heads=max(1, args.hidden_size // 128),
    )  # fmt: skip
    trainer = Trainer(plan, shape, device, args.tokenizer, args.out, args.compile)
    trainer.load_corpus()
    trainer.warm_up()
    trainer.run()


if __name__ == "__main__":
    main()

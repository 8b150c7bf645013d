"""transformers' own loop, its Trainer, as a side: it runs in a thread, and waits at each step until it is asked for."""

import itertools
import tempfile
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.side import COMPARED, Done, Setting, Side
from minilm.train.optim import gradient_norm


def trained(made: nn.Module, setting: Setting, batches: list[dict[str, Tensor]], count: int, **how: Any) -> Side:
    """made: one of transformers' models; count: of real tokens in all batches; how: more of TrainingArguments."""
    asked, answers = Queue[None](), Queue[Tensor | BaseException]()
    compared = COMPARED[setting.device.type] * len(batches)

    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            return itertools.cycle({name: own.to(setting.device) for name, own in batch.items()} for batch in batches)

    class Answering(Trainer):
        steps = 0

        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(Endless(), batch_size=None)

        def training_step(self, model: nn.Module, *inputs: Any) -> Tensor:
            loss = super().training_step(model, *inputs)
            norm = [gradient_norm(model)] if self.steps < compared else []  # as in the plain loop, before it is clipped
            self.steps += 1
            self.answer = torch.stack([loss, *norm])
            return loss

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            asked.get()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            answers.put(trainer.answer)

    def work() -> None:
        try:
            trainer.train()
        except BaseException as error:
            answers.put(error)

    with tempfile.TemporaryDirectory() as scratch:  # where nothing is written
        settings = TrainingArguments(
            scratch,
            max_steps=10**9,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            bf16=setting.precision == "bf16",
            use_cpu=setting.device.type == "cpu",
            logging_strategy="no",
            logging_nan_inf_filter=not how.get("torch_compile"),  # which waits for the device in each step
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **how,
        )
        if settings.device.type == "cuda":  # which is read first
            settings._n_gpu = 1  # else it takes all, as DataParallel
        trainer = Answering(made, settings, train_dataset=Endless(), callbacks=[Turns()])
    thread = threading.Thread(target=work, daemon=True)

    def run() -> Done:
        if thread.ident is None:
            thread.start()
        found = []
        for _ in batches:
            asked.put(None)
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            found.append(answer)
        return Done(count, torch.stack(found).T)

    return run

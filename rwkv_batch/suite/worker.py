"""The program of the process that evaluates: it loads the harness once, and one checkpoint after the other."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from time import perf_counter
from typing import TYPE_CHECKING

from ..errors import CheckpointError, MissingExtraError, RwkvBatchError, Stopped
from ..message_process import ParentPipes
from .messages import Answer, Check, Checked, Done, Evaluate, Failed, Interrupted, Start
from .tasks import HarnessTask, JobTask

if TYPE_CHECKING:
    from ..llm import LLM
    from .harness import Harness
    from .models import Checkpoint


def main(parent: str) -> None:
    """The program.

    Args:
        parent: the process whose end ends this one.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    pipes = ParentPipes(parent)
    try:
        worker = Worker(pipes.receive())
        while True:
            answer = worker.answer(pipes.receive())
            pipes.send(answer)
            if isinstance(answer, Interrupted) or (isinstance(answer, Failed) and answer.ends):
                break
    except EOFError:  # the parent has ended
        pass
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # threads and a broken device may keep an orderly end from coming


class Worker:
    """Answers questions, one at a time."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._known_harness: Harness | None = None
        self._loaded: tuple[Checkpoint, LLM] | None = None

    def answer(self, question: Check | Evaluate) -> Answer:
        """The answer to a question. Errors are answers too."""
        try:
            if isinstance(question, Check):
                return Checked(tuple(self._harness().problems()))
            start = perf_counter()
            done = self._evaluate(question)
            return Done(done.metrics, done.samples, perf_counter() - start, done.settings)
        except Stopped:
            return Interrupted()
        except MissingExtraError as error:
            return Checked((str(error),)) if isinstance(question, Check) else Failed(str(error))
        except CheckpointError as error:
            return Failed(str(error), is_of_checkpoint=True)
        except RwkvBatchError as error:
            return Failed(str(error))
        except Exception as error:
            traceback.print_exc()
            return Failed(f"{type(error).__name__}: {error}", ends=True)

    def _evaluate(self, question: Evaluate) -> Done:
        checkpoint, task = question.checkpoint, question.task
        if isinstance(task, HarnessTask):
            cache = os.path.join(question.folder, "cache", checkpoint.id, task.name)
            return self._harness().evaluate(self._llm(checkpoint), task, cache)
        assert isinstance(task, JobTask)
        self._unload()  # the job loads the model with its own settings
        from .job_task import run_job_task

        return run_job_task(checkpoint, task, question.folder)

    def _harness(self) -> Harness:
        if self._known_harness is None:
            print("rwkv_batch: loading the harness and the list of its tasks", file=sys.stderr, flush=True)
            from .harness import Harness

            self._known_harness = Harness(self._start.harness_tasks)
        return self._known_harness

    def _llm(self, checkpoint: Checkpoint) -> LLM:
        """The model of a checkpoint. It stays loaded until another one is asked for."""
        if self._loaded is None or self._loaded[0] != checkpoint:
            self._unload()
            from ..job.prepare import engine_settings, model_settings
            from ..llm import LLM, inspect_model

            model = model_settings(self._start.model.model_copy(update={"path": checkpoint.path}))
            self._loaded = checkpoint, LLM.from_summary(inspect_model(model, engine_settings(self._start.engine)))
        return self._loaded[1]

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None

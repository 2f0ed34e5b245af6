"""The messages of an actor, without a cluster of Ray."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from job.conftest import Job
from rwkv_batch.errors import CheckpointError, ConfigurationError
from rwkv_batch.job.load import load_job
from rwkv_batch.job.workers.messages import Failed, Message, Ready, Taken
from rwkv_batch.job.workers.ray_mailbox import Mail, Mailbox
from rwkv_batch.job.workers.ray_worker import Outbox, check_folders


def test_messages_keep_their_order_and_a_taken_has_arrived_when_the_call_returns():
    arrived: list[Message] = []
    may_arrive = threading.Event()

    def deliver(messages: list[Message]) -> None:
        may_arrive.wait()
        arrived.extend(messages)

    outbox = Outbox(deliver)
    outbox.send(Ready())  # does not wait
    sending = threading.Thread(target=outbox.send, args=(Taken([1, 2]),))
    sending.start()
    assert not arrived
    assert sending.is_alive()
    may_arrive.set()
    sending.join()
    assert arrived == [Ready(), Taken([1, 2])]
    outbox.send(Ready())
    outbox.close()
    assert arrived == [Ready(), Taken([1, 2]), Ready()]


@pytest.mark.parametrize("error", [CheckpointError("no.pth: no such file"), ConfigurationError("a sentence")])
def test_a_model_that_a_node_does_not_see_is_an_error_with_its_host(error: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    arrived: list[Any] = []
    outbox = Outbox(arrived.extend)
    outbox.send(Failed(error))
    outbox.close()
    ((sent,),) = arrived
    assert type(sent) is type(error)
    is_about_the_model = isinstance(error, CheckpointError)
    assert str(sent).startswith("on the node node-7: no.pth: no such file" if is_about_the_model else "a sentence")


def test_a_node_that_does_not_see_the_folders_of_the_job_is_named(job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    start: Any = SimpleNamespace(job=load_job(job.write()), document={"fingerprint": "of another job"})
    for run in (lambda: None, job.run):
        run()
        with pytest.raises(ConfigurationError, match=r"^output.path: the node node-7 does not find this job in .*\.rw"):
            check_folders(start)
    start.document = json.loads((job.state / "job.json").read_text())
    check_folders(start)


def test_a_mailbox_keeps_all_messages_until_they_are_taken():
    async def exchange() -> list[list[Mail]]:
        mailbox = Mailbox()
        waiting = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        await mailbox.put(1, "node", ["a", "b"])
        first = await waiting
        await mailbox.put(2, "node", ["c"])
        await mailbox.put(1, "", ["d"])
        return [first, await mailbox.take()]

    first, second = asyncio.run(exchange())
    assert first == [Mail(1, "node", "a"), Mail(1, "node", "b")]
    assert second == [Mail(2, "node", "c"), Mail(1, "", "d")]

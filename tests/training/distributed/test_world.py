"""Joining: all ranks meet, or the job ends within its time and says who is missing. Real processes."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from maep.config.load import load_settings
from maep.config.schema import Settings
from maep.runtime.errors import UserError
from maep.runtime.unwinding import hold_signals
from maep.training.distributed import world
from maep.training.distributed.accelerator import _name_device
from maep.training.distributed.coordinator import Launcher, run_coordinated
from maep.training.distributed.world import Member, agree, gather_objects, join_world
from maep.training.signals import StopFlag, arm

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["maep.training.distributed.coordinator", "maep.config.load"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_rank(
    work: Callable[[Settings], Any], rank: int, size: int, port: int, results: "Queue[Any]", all_done: Event
) -> None:
    """The body of a process: be one rank of a job, do the work, report what came of it, stay until all have."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        result = work(load_settings(None, ["compute.join_timeout=2", f"run.seed={rank // 10}"]))
    except Exception as error:  # noqa: BLE001
        result = f"{type(error).__name__}: {error}"
    results.put((rank, result))
    all_done.wait(60)


def run_ranks(work: Callable[[Settings], Any], ranks: list[tuple[int, int]]) -> list[tuple[int, Any]]:
    """Run `work` as each (rank, size) of one job; what each returned or raised, sorted by rank."""
    results, all_done, port = CONTEXT.Queue(), CONTEXT.Event(), free_port()
    started = [CONTEXT.Process(target=as_rank, args=(work, *who, port, results, all_done)) for who in ranks]
    for process in started:
        process.start()
    collected = [results.get(timeout=60) for _ in ranks]
    all_done.set()
    for process in started:
        process.join(30)
    return sorted(collected, key=lambda item: item[0])


def meet(settings: Settings) -> tuple[list[float], list[int]]:
    """Join and use the group; on which node everybody is is known to the launcher."""
    joined = join_world(settings.compute, nodes=["n1", "n1", "n2", "n2"][: int(os.environ["WORLD_SIZE"])])
    assert join_world(settings.compute) is joined
    return agree([joined.rank, 1], torch.device("cpu")), gather_objects(joined.rank)


def test_ranks_meet() -> None:
    """Three processes join, and then sum and gather over all of them."""
    assert run_ranks(meet, [(0, 3), (1, 3), (2, 3)]) == [(rank, ([3.0, 3.0], [0, 1, 2])) for rank in range(3)]


ENDS_BY_ITSELF = """
import atexit
from pathlib import Path
import torch.distributed as dist
from maep.config.load import load_settings
from maep.training.distributed.world import join_world

def say_threads():
    print(sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm")))

atexit.register(say_threads)  # handlers run in reverse order
join_world(load_settings(None, ["compute.join_timeout=60"]).compute)
group = dist.new_group(backend="gloo")
dist.barrier(group)
say_threads()
holders = [[group]]
holders[0].append(holders[0])
del group, holders
"""


def test_no_thread_of_the_group_outlives_the_interpreter() -> None:
    """At the end of a rank that joined and made a group more, as checkpoints do, gloo's threads have ended.

    One that frees a tensor when the interpreter is gone aborts the process, whose work was done.
    """
    here = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", ENDS_BY_ITSELF]
    ranks = [
        subprocess.Popen(command, env={**here, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        said, errors = rank.communicate(timeout=120)
        during, after = map(int, said.split())
        assert (rank.returncode, during > 0, after) == (0, True, 0), errors.decode()


def test_missing_rank_is_named_with_its_node() -> None:
    """Ranks 1 and 3 never come: the others end within the time, each naming both and their nodes."""
    told = "PeerLost: rank 1 on node n1, rank 3 on node n2 did not join within 2 s; 2 of 4 processes did"
    assert run_ranks(meet, [(0, 4), (2, 4)]) == [(0, told), (2, told)]


def test_missing_rank_0_is_named() -> None:
    """Without rank 0 the others end too, and say where they looked for it."""
    ((_, told),) = run_ranks(meet, [(1, 2)])
    assert told.startswith("PeerLost: rank 0 on node 127.0.0.1 did not join: no answer on port")


def test_second_process_of_a_rank_is_refused() -> None:
    """Of two processes that say they are rank 1 one is refused, naming the other; the job goes on."""
    results = run_ranks(join_only, [(0, 2), (1, 2), (1, 2)])
    told = [result for _, result in results if result != 2]
    assert len(told) == 1
    assert told[0].startswith("PeerLost: rank 1: joined twice; the first is process ")


def join_as_number_7(settings: Settings) -> int:
    """As a process that has a container, whose name is another's too, to itself."""
    mock.patch.object(world, "os", SimpleNamespace(environ=os.environ, getpid=lambda: 7)).start()
    return join_only(settings)


def test_a_second_process_of_the_same_name_and_number_is_refused() -> None:
    """On nodes of one name two processes may have one number; they are two all the same."""
    results = run_ranks(join_as_number_7, [(0, 2), (1, 2), (1, 2)])
    told = [result for _, result in results if result != 2]
    assert len(told) == 1
    assert told[0].startswith("PeerLost: rank 1: joined twice; the first is process 7 ")


@pytest.mark.parametrize("text", ["7", "{", "[]", '{"node": "a"}', '{"node": 1, "process": 2, "size": 2}', "\ud800"])
def test_what_another_program_wrote_is_refused(text: str) -> None:
    """Whoever reaches the port can write into the store."""
    with pytest.raises(UserError, match="the processes' store"):
        Member.from_text(text.encode(errors="surrogatepass"))
    member = Member("a", 1, "1-0123abcd-5", 2)
    assert Member.from_text(member.to_text().encode()) == member


def join_only(settings: Settings) -> int:
    """Join; the number of processes."""
    return join_world(settings.compute).size


def test_process_of_another_world_is_refused() -> None:
    """A rank started as one of 3 does not join a job of 2: both sides say so."""
    (_, first), (_, second) = run_ranks(join_only, [(0, 2), (1, 3)])
    assert first.startswith("PeerLost: rank 1 on node")
    assert first.endswith("was started as one of 3 processes, not of 2")
    assert second == first


def test_surplus_rank_is_refused() -> None:
    """Rank 2 of 2 cannot be; and rank 2 of 3 finds that the job has 2, which does not disturb those."""
    assert run_ranks(join_only, [(2, 2)])[0][1].startswith("UserError: RANK=2: must be from 0 to 1")
    results = run_ranks(join_only, [(0, 2), (1, 2), (2, 3)])
    assert [result for _, result in results[:2]] == [2, 2]
    assert results[2][1] == "PeerLost: rank 2: was started as one of 3 processes, rank 0 as one of 2"


def follow_orders(settings: Settings) -> list[str]:
    """Rank 0 has two stages trained; every rank notes what it was told to train and with whom."""
    trained: list[str] = []

    def train(name: str, _: Settings) -> None:
        trained.append(f"{name} {agree([1], torch.device('cpu'))[0]:g}")

    def coordinate(launch: Launcher) -> None:
        launch("pretrain", settings)
        launch("finetune", settings)

    run_coordinated(join_world(settings.compute), settings, coordinate, train)
    return trained


def test_others_follow_rank_0() -> None:
    """What rank 0 decides to train, every rank trains, in that order; then all end."""
    both = ["pretrain 3", "finetune 3"]
    assert run_ranks(follow_orders, [(0, 3), (1, 3), (2, 3)]) == [(rank, both) for rank in range(3)]


def nothing_to_do(settings: Settings) -> str:
    """Rank 0 finds nothing to train, or fails while it looks."""
    run_coordinated(join_world(settings.compute), settings, lambda _: 1 / 0, lambda *_: None)
    return "followed"


def test_followers_end_when_rank_0_fails() -> None:
    """An error in rank 0's own work ends the others at once, without one of their own."""
    assert run_ranks(nothing_to_do, [(0, 2), (1, 2)]) == [(0, "ZeroDivisionError: division by zero"), (1, "followed")]


def held(settings: Settings) -> tuple[int, int]:
    """A signal that came before `arm` is seen after it, also by the loop's context."""
    with hold_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        flag = arm()
    with StopFlag() as inner:
        return flag.signum, inner.signum


def test_signal_before_arming_is_kept() -> None:
    """SIGTERM during the imports of a rank, held back by its launcher, is in the flag that the loop reads."""
    assert run_ranks(held, [(0, 1)]) == [(0, (signal.SIGTERM, signal.SIGTERM))]


@pytest.mark.parametrize(("device", "backend"), [(torch.device("cuda", 3), "nccl"), (torch.device("cpu"), "gloo")])
def test_the_group_is_of_the_device(device: torch.device, backend: str) -> None:
    """NCCL where the rank computes on CUDA; the rank's device is set before the group is made."""
    compute = load_settings(None, ["compute.stall_timeout=7"]).compute
    calls = mock.Mock()
    calls.prepare_device.return_value = device
    with (
        mock.patch.object(world, "prepare_device", calls.prepare_device),
        mock.patch.object(dist, "init_process_group", calls.init_process_group),
    ):
        world._make_group(1, 2, dist.HashStore(), compute)
    assert [call[0] for call in calls.mock_calls] == ["prepare_device", "init_process_group"]
    assert calls.init_process_group.call_args.args == (backend,)
    options = calls.init_process_group.call_args.kwargs
    assert (options["rank"], options["world_size"], options["timeout"]) == (1, 2, timedelta(seconds=7))


@pytest.mark.parametrize(("device", "place"), [(torch.device("cuda", 0), "0"), (torch.device("cpu"), "3")])
def test_libraries_are_told_the_number_of_the_device(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, place: str
) -> None:
    """A task bound to one GPU sees number 0, whatever its place on the node; accelerate would take the place for it."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    _name_device(device)
    assert os.environ["LOCAL_RANK"] == place

import asyncio

from entrepot.replication.concurrency import Turns


class Bodies:
    """Work that each waits for its turn, and then until it is let go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self.ends = {name: asyncio.Event() for name in "abcdef"}
        self.tasks = {name: asyncio.create_task(self.work(name)) for name in self.ends}

    async def work(self, name: str) -> None:
        async with self.turns.turn(name):
            self.begun.append(name)
            await self.ends[name].wait()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_have_their_turn_at_a_time_in_order() -> None:
    bodies = Bodies(Turns(2))
    await settle()
    assert bodies.begun == ["a", "b"]
    await bodies.end("b")
    assert bodies.begun == ["a", "b", "c"]
    for name in "acdef":
        await bodies.end(name)
    assert bodies.begun == list("abcdef")


async def test_what_is_hurried_goes_beside_but_not_without_end() -> None:
    turns = Turns(1)
    turns.hurry("f")  # before it comes
    bodies = Bodies(turns)
    await settle()
    assert bodies.begun == ["a", "f"]
    turns.hurry("e")
    await settle()
    assert bodies.begun == ["a", "f"]
    await bodies.end("f")
    assert bodies.begun == ["a", "f", "e"]
    for name in "aebcd":
        await bodies.end(name)
    assert bodies.begun == list("afebcd")


async def test_who_gives_up_takes_no_turn_away() -> None:
    bodies = Bodies(Turns(1))
    await settle()
    bodies.tasks["b"].cancel()
    bodies.ends["a"].set()
    await settle()
    bodies.tasks["c"].cancel()  # which has its turn
    await settle()
    assert bodies.begun == ["a", "c", "d"]
    for name in "def":
        await bodies.end(name)
    assert bodies.begun == list("acdef")

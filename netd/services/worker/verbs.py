"""What workers may ask for, done to the hub. Pure; wire/workers.py is the specification.

Rules:
- nothing is checked against permissions: a worker is the server's side. The hub's bounds and sizes hold, and what they
  refuse is told, whether the verb has a `ref` or not;
- a session that there is not is no error;
- an answer comes when the hub has it: a backplane of several machines may take a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.errors import ControlError, Denied
from netd.hub.orders import copy, hear, session_of, set_token
from netd.hub.permissions import Refusal, valid
from netd.hub.seams import Letter, Order, application_event
from netd.services.worker.seats import describe
from netd.wire.workers import (
    Answer,
    AskHistory,
    AskInfo,
    AskPresence,
    CloseSession,
    CopySession,
    CopySubscriptions,
    Error,
    HistoryPage,
    Publish,
    Said,
    Send,
    SendBroadcast,
    SendDirect,
    SetToken,
    Subscribe,
    Unsubscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.hub.history import Page
    from netd.hub.hub import Hub
    from netd.hub.session import Session
    from netd.services.worker.pool import Pool
    from netd.wire.workers import Client, ToWorker, Verb

    Answers = Callable[[Any], None]
    Refuse = Callable[[ControlError], None]
    Tell = Callable[[ToWorker], bool]


class Verbs:
    """For all workers of a pool."""

    def __init__(self, hub: Hub, pool: Pool) -> None:
        self._hub = hub
        self._pool = pool

    def perform(self, verb: Verb, tell: Tell) -> None:
        """Do it. `tell` reaches the worker that asks, and says whether that could be."""
        ref = verb.ref

        def answer(value: Any) -> None:
            if ref is not None and not tell(Answer(ref, value)):
                tell(Error("too-large", "cannot answer: it would be longer than worker.max_frame", ref))

        def refuse(error: ControlError) -> None:
            tell(Error(_code(error), str(error), ref))

        try:
            _VERBS[type(verb)](self, verb, answer, refuse)
        except ControlError as error:
            refuse(error)

    def _session(self, id: str) -> Session | None:
        return session_of(self._hub, id)

    def _may_be_elsewhere(self, id: str) -> bool:
        """Another machine may have a session of this id."""
        return self._hub.backplane.others and not id.startswith(("name:", "tag:"))

    # --- messages ----------------------------------------------------------------------------------------------------

    def _send(self, verb: Send, answer: Answers, refuse: Refuse) -> None:
        session = self._session(verb.session)
        if session is not None:
            answer(session.send(application_event(verb.data), verb.priority, verb.ephemeral))
        elif self._may_be_elsewhere(verb.session):
            letter = Letter(verb.session, verb.data, None, verb.priority, verb.ephemeral, application=True)
            self._hub.backplane.send(letter, lambda count: answer(count > 0))
        else:
            answer(False)

    def _publish(self, verb: Publish, answer: Answers, refuse: Refuse) -> None:
        sender = None if verb.from_ is None else self._session(verb.from_)
        channel = valid(verb.channel)
        answer(self._hub.publish(channel, verb.data, sender=sender, priority=verb.priority, ephemeral=verb.ephemeral))

    def _direct(self, verb: SendDirect, answer: Answers, refuse: Refuse) -> None:
        self._hub.direct(verb.to, verb.data, priority=verb.priority, ephemeral=verb.ephemeral, answer=answer)

    def _broadcast(self, verb: SendBroadcast, answer: Answers, refuse: Refuse) -> None:
        self._hub.broadcast(verb.data, priority=verb.priority, ephemeral=verb.ephemeral, answer=answer)

    # --- subscriptions -----------------------------------------------------------------------------------------------

    def _subscribe(self, verb: Subscribe, answer: Answers, refuse: Refuse) -> None:
        session = self._session(verb.session)
        if session is not None:
            answer(hear(self._hub, session, verb.channel))
        else:
            self._carry(Order("subscribe", verb.session, valid(verb.channel)), answer)

    def _unsubscribe(self, verb: Unsubscribe, answer: Answers, refuse: Refuse) -> None:
        session = self._session(verb.session)
        if session is not None:
            answer(self._hub.unsubscribe(session, verb.channel))
        else:
            self._carry(Order("unsubscribe", verb.session, verb.channel), answer)

    def _carry(self, order: Order, answer: Answers) -> None:
        """To the machine that has the session, if one has it. Answer whether that has changed anything."""
        if order.session is not None and self._may_be_elsewhere(order.session):
            self._hub.backplane.carry(order, lambda count: answer(count > 0))
        else:
            answer(False)

    def _copy(self, verb: CopySubscriptions, answer: Answers, refuse: Refuse) -> None:
        order = Order("copy", None, valid(verb.source), valid(verb.target))
        here = 0

        def arrived(count: int) -> None:
            if refused is None:
                answer(here + count)
            else:
                refuse(refused)

        refused = None
        try:
            here = copy(self._hub, verb.source, verb.target)
        except Refusal as error:
            refused = error  # of some; the others are to hear it on every machine
        self._hub.backplane.carry(order, arrived)

    def _copy_session(self, verb: CopySession, answer: Answers, refuse: Refuse) -> None:
        source, target = self._session(verb.source), self._session(verb.target)
        answer(0 if source is None or target is None else self._hub.copy_subscriptions(source.id, target.id))

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _set_token(self, verb: SetToken, answer: Answers, refuse: Refuse) -> None:
        session = self._session(verb.session)
        if session is None:
            self._carry(Order("token", verb.session, verb.token or b""), answer)
            return
        set_token(self._hub, session, verb.token or b"")
        self._pool.state_changed(session)
        answer(True)

    def _close(self, verb: CloseSession, answer: Answers, refuse: Refuse) -> None:
        session = self._session(verb.session)
        if session is not None:
            self._hub.end(session, verb.code, verb.reason)
            answer(True)
        elif self._may_be_elsewhere(verb.session):
            self._hub.backplane.kick(verb.session, verb.code, verb.reason, lambda count: answer(count > 0))
        else:
            answer(False)

    # --- questions ---------------------------------------------------------------------------------------------------

    def _presence(self, verb: AskPresence, answer: Answers, refuse: Refuse) -> None:
        hub, channel = self._hub, valid(verb.channel)
        most = hub.config.max_listed

        def arrived(count: int, others: list[Client]) -> None:
            here = hub.presence(channel)
            if len(here) + count > most:
                what = f"cannot list {len(here) + count} sessions: at most {most} (hub.max_listed)"
                refuse(Refusal("too-many", what))
            else:
                answer([*here, *others])

        hub.backplane.elsewhere(channel, most, arrived)

    def _history(self, verb: AskHistory, answer: Answers, refuse: Refuse) -> None:
        def arrived(page: Page | None) -> None:
            if page is None:
                answer(None)
                return
            said = [
                Said(each.data, each.sender, each.offset, each.time)
                for each in (publication.taken() for publication in page.messages)
            ]
            answer(HistoryPage(page.epoch, page.offset, said))

        hub = self._hub
        hub.one_channel(valid(verb.channel), "read the history of")
        hub.backplane.history(verb.channel, verb.since, min(verb.limit, hub.config.max_listed), arrived)

    def _info(self, verb: AskInfo, answer: Answers, refuse: Refuse) -> None:
        session = self._session(verb.session)
        answer(None if session is None else describe(session))


_VERBS: dict[type, Callable[[Verbs, Any, Answers, Refuse], None]] = {
    Send: Verbs._send,
    Publish: Verbs._publish,
    SendDirect: Verbs._direct,
    SendBroadcast: Verbs._broadcast,
    Subscribe: Verbs._subscribe,
    Unsubscribe: Verbs._unsubscribe,
    CopySubscriptions: Verbs._copy,
    CopySession: Verbs._copy_session,
    SetToken: Verbs._set_token,
    CloseSession: Verbs._close,
    AskPresence: Verbs._presence,
    AskHistory: Verbs._history,
    AskInfo: Verbs._info,
}


def _code(error: ControlError) -> str:
    if isinstance(error, Refusal):
        return error.code
    return "denied" if isinstance(error, Denied) else "unavailable"

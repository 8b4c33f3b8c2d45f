"""How an alert gets out: always to the log, and through Apprise when the connection `alerts` exists.

The connection's **password** holds the Apprise URL (or several, separated by spaces), because the URL is a secret and the
password is the field Airflow encrypts and masks:

    AIRFLOW_CONN_ALERTS='{"conn_type": "generic", "password": "slack://TokenA/TokenB/TokenC/#billing"}'

URLs: https://github.com/caronc/apprise/wiki. Nothing here raises: a failed delivery is itself logged, and changes nothing else.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable

from billing_airflow.alerts import Alert, mask

#: The connection that switches sending on.
CONNECTION_ID = "alerts"

#: Every alert's line in a log begins with this, and every alert that could not be sent with the other.
LOG_PREFIX = "BILLING ALERT"
NOT_SENT_PREFIX = "BILLING ALERT NOT SENT"

#: For connecting and for each read, in seconds. Airflow gives listeners no time limit of their own, so a slow chat service
#: must not hold a worker's slot.
HTTP_TIMEOUT_S = 3.0

#: How long a task process waits for its alert before it ends without it, in seconds: both HTTP time-outs, and the import of
#: Apprise on a busy machine. Stays far below the supervisor's own limit for a task that has already ended (20 s).
TASK_PROCESS_DEADLINE_S = 10.0

#: How long a server that shuts down waits for alerts in its outbox, in seconds; below the 10 s that `docker stop` grants.
SHUTDOWN_DEADLINE_S = 6.0

#: Alerts waiting in one server. At 3 s each for a service that does not answer, more would be told hours late; all are in the log.
OUTBOX_LIMIT = 500

log = logging.getLogger("token_billing.alerts")


class UndeliverableAlert(Exception):
    """The alert was logged but not sent; the message says why."""


def tell_from_task(alert: Alert) -> None:
    """Logs the alert and sends it before returning, within `TASK_PROCESS_DEADLINE_S`: the task process ends right afterwards."""
    _log(alert)
    try:
        # In this thread: the lookup talks to the supervisor over a channel that belongs to the task.
        urls = _urls_known_to_the_task()
    except Exception as error:
        _log_not_sent(alert, error)
        return
    if not urls:
        return
    sending = threading.Thread(target=_send_or_log, args=(alert, lambda: urls), name="billing-alert", daemon=True)
    sending.start()
    sending.join(TASK_PROCESS_DEADLINE_S)
    if sending.is_alive():
        _log_not_sent(alert, UndeliverableAlert(f"no answer within {TASK_PROCESS_DEADLINE_S:.0f} s; the task ends without waiting longer"))


def tell_from_server(alert: Alert) -> None:
    """Logs the alert and returns at once; the outbox's thread sends it.

    Neither the lookup nor the sending may happen in the caller's thread: opening a session there takes the scheduler's own
    (Airflow's sessions are one per thread) and crashes it, and its loop schedules every DAG.
    """
    _log(alert)
    _outbox.put(alert)


class Outbox:
    """Alerts on their way out of a long-lived process: scheduler, API server."""

    def __init__(self) -> None:
        self._alerts: queue.Queue[Alert] = queue.Queue(maxsize=OUTBOX_LIMIT)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def put(self, alert: Alert) -> None:
        """Takes the alert without waiting; a full outbox is logged."""
        try:
            self._alerts.put_nowait(alert)
        except queue.Full:
            _log_not_sent(alert, UndeliverableAlert(f"{OUTBOX_LIMIT} alerts are already waiting"))
            return
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="billing-alerts", daemon=True)
                self._thread.start()

    def flush(self, within_s: float = SHUTDOWN_DEADLINE_S) -> None:
        """Waits until everything taken is sent or given up, at most `within_s` seconds."""
        give_up_at = time.monotonic() + within_s
        while self._alerts.unfinished_tasks and time.monotonic() < give_up_at:
            time.sleep(0.02)

    def _run(self) -> None:
        while True:
            alert = self._alerts.get()
            try:
                _send_or_log(alert, _urls_known_to_the_server)
            finally:
                self._alerts.task_done()


_outbox = Outbox()
atexit.register(lambda: _outbox.flush())


def _start_over_in_child() -> None:
    # A forked child has the parent's queue and locks but not its thread: it would wait for deliveries that nobody makes, and
    # send the parent's alerts a second time.
    global _outbox
    _outbox = Outbox()


os.register_at_fork(after_in_child=_start_over_in_child)


def _send_or_log(alert: Alert, urls: Callable[[], str | None]) -> None:
    try:
        found = urls()
        if found:
            _send(alert, found)
    except Exception as error:
        _log_not_sent(alert, error)


def _urls_known_to_the_task() -> str | None:
    """The Apprise URLs of connection `alerts`, asked for the way tasks ask; None when there is no such connection."""
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = Connection.get(CONNECTION_ID)
    except AirflowNotFoundException:
        return None
    return _password(connection.password)


def _urls_known_to_the_server() -> str | None:
    """The Apprise URLs of connection `alerts` from environment, secrets backend or metadata database; None without it.

    Asks the backends itself: `Connection.get` in a server would cache the answer and, beside a running task, go through that
    task's channel. Raises when a backend could not be asked and no other knows the connection.
    """
    from airflow.configuration import ensure_secrets_loaded

    failures: list[Exception] = []
    for backend in ensure_secrets_loaded():
        try:
            connection = backend.get_connection(conn_id=CONNECTION_ID)
        except Exception as error:
            failures.append(error)
            continue
        if connection is not None:
            return _password(connection.password)
    if failures:
        why = f"{type(failures[0]).__name__}: {failures[0]}"
        raise UndeliverableAlert(f"connection {CONNECTION_ID!r} could not be looked up: {why}") from failures[0]
    return None


def _password(password: str | None) -> str:
    if not password:
        raise UndeliverableAlert(f"connection {CONNECTION_ID!r} has no password; write the Apprise URL there")
    return password


def _send(alert: Alert, urls: str) -> None:
    """Sends to every URL. Raises `UndeliverableAlert` naming the services that refused, after all were tried."""
    _secrets.learn(urls)

    from apprise import Apprise, AppriseAsset, NotifyType
    from apprise.utils.parse import parse_urls

    title, body = _without_known_secrets(mask(alert.title)), _without_known_secrets(alert.body)
    refused: list[str] = []
    for position, url in enumerate(parse_urls(urls) or [urls], start=1):
        # One service at a time and without Apprise's own limit, because either brings in its pool of threads: the pool refuses
        # work while a process ends, hangs in a forked child, and mixes the services' log records.
        service = Apprise(asset=AppriseAsset(service_timeout=0))
        with _ReasonsGiven() as reasons:
            accepted = service.add(url)
            for plugin in service:
                plugin.socket_connect_timeout = min(plugin.socket_connect_timeout, HTTP_TIMEOUT_S)
                plugin.socket_read_timeout = min(plugin.socket_read_timeout, HTTP_TIMEOUT_S)
            sent = accepted and service.notify(title=title, body=body, notify_type=NotifyType.FAILURE)
        if not sent:
            why = "; ".join(reasons) or ("the service refused it" if accepted else "not an Apprise URL")
            refused.append(f"URL {position} of connection {CONNECTION_ID!r}: {why}")
    if refused:
        raise UndeliverableAlert(", ".join(refused))


def _log(alert: Alert) -> None:
    log.error("%s | %s", LOG_PREFIX, alert.line)


def _log_not_sent(alert: Alert, error: Exception) -> None:
    why = str(error) if isinstance(error, UndeliverableAlert) else f"{type(error).__name__}: {error}"
    log.error("%s | %s | %s", NOT_SENT_PREFIX, alert.title, _without_known_secrets(mask(" ".join(why.split()))))


class _UrlSecrets(logging.Filter):
    """Removes the pieces of Apprise URLs from what Apprise and urllib3 log: tokens are in the path, where no pattern finds them."""

    #: Shorter pieces are words such as "json" or "chat", and removing them would make logs unreadable.
    SHORTEST_PIECE = 8

    def __init__(self) -> None:
        super().__init__()
        self._pieces: set[str] = set()

    def learn(self, urls: str) -> None:
        pieces = {piece for piece in re.split(r"[\s,:/@?&=#]+", urls) if len(piece) >= self.SHORTEST_PIECE}
        self._pieces |= {urls, *pieces}
        for name in ("apprise", "urllib3.connectionpool"):
            # Adding the same filter again changes nothing.
            logging.getLogger(name).addFilter(self)

    def remove_from(self, text: str) -> str:
        for piece in sorted(self._pieces, key=len, reverse=True):
            text = text.replace(piece, "***")
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.remove_from(record.getMessage()), None
        return True


_secrets = _UrlSecrets()


def _without_known_secrets(text: str) -> str:
    """The text without pieces of Apprise URLs and without whatever Airflow itself knows to be a secret."""
    from airflow.sdk._shared.secrets_masker import redact

    return str(redact(_secrets.remove_from(text)))


class _ReasonsGiven(logging.Handler):
    """Collects why Apprise did not send: it answers False and says the reason only to its log."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self._reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._reasons.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("apprise").addHandler(self)
        return self._reasons

    def __exit__(self, *_: object) -> None:
        logging.getLogger("apprise").removeHandler(self)

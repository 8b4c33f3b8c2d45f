"""Owns the processes of `make up`: starts them, starts one again that died, and stops them all on SIGTERM.

postgres          both databases; not a child, because it outlives a crash of ours and runs as somebody else under root
stripe-simulator  the account, kept in simulator/, in real time
live-usage        the application with users
api-server, scheduler, dag-processor, triggerer
                  Airflow, started one by one: `airflow standalone` orphans its children when it is told to end
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import psutil
import psycopg

from sandbox.airflow_api import AirflowApi, AirflowRefused
from sandbox.environment import HOME, SECRET_KEY, SandboxServices, airflow_environment, kept_secret
from sandbox.live_usage import first_window, let_usage_arrive, live_tenants
from sandbox.ports import free_port, is_free
from sandbox.postgres import PostgresError, PostgresServer
from sandbox.services import prepare_billing_database, sandbox_databases, shared_postgres
from sandbox.stack import LOGS, SUPERVISOR, Stack, StackFailed, fresh_log, kill_all, marked, stack_processes
from sandbox.stripe_account import link_tenants, renew_webhook
from token_billing.adapters.clock import system_clock
from token_billing.periods import LONGEST_GRACE
from token_billing.windows import Window, last_closed_window

DAG_ID = "report_usage"

#: Less than a month, so that a new sandbox is in its tenants' first billing period.
SUBSCRIBED_BEFORE = timedelta(days=25)

#: Airflow's own port, and where to look when it is taken.
AIRFLOW_PORTS = (8080, *range(8081, 8100))

#: A cold start on two busy cores takes less than one minute.
HEALTHY_SECONDS = 240.0
SIMULATOR_SECONDS = 60.0

#: A part that dies at once is not started again more often than this, in seconds.
RESTART_PAUSE = 10.0

#: How long a part may take to end, in seconds. The scheduler waits for running tasks, which end within seconds.
SERVER_SECONDS, REST_SECONDS = 25.0, 10.0

#: Usage is never billed once it is older than Stripe takes, so nothing older is looked for.
LONGEST_BILLABLE = timedelta(days=35)


class _Ended(BaseException):
    """SIGTERM or SIGINT: stop everything, wherever we are."""


class Part:
    """One process we own. It runs from here on; what it says is appended to the log."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = {**environment, **marked(name)}
        self.launch()

    def launch(self) -> None:
        """Starts it, the first time or again."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=HOME)
        self.launched_at = time.monotonic()

    def has_ended(self) -> bool:
        return self.child.poll() is not None

    def listens(self) -> bool:
        """Whether it, not a child of it, has a port open."""
        with suppress(psutil.Error):
            connections = psutil.Process(self.child.pid).net_connections("tcp4")
            return any(connection.status == psutil.CONN_LISTEN for connection in connections)
        return False

    def how_it_ended(self) -> str:
        code = self.child.returncode
        return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"

    def tail(self, line_count: int = 25) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-line_count:]) or "(nothing)"


class Supervisor:
    """Everything that `make up` starts, and the file that tells of it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._parts: dict[str, Part] = {}
        self._phase: str = "starting"
        self._url: str | None = None
        self._save()

    def run(self, wanted_port: int | None) -> None:
        """Starts everything, then keeps it running until SIGTERM. Raises StackFailed or PostgresError when it does not start."""
        self.say("starting PostgreSQL")
        with shared_postgres() as postgres:
            try:
                self._start(postgres, wanted_port)
                self._phase = "ready"
                self._save()
                self._keep_running(postgres)
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                self._stop()

    def say(self, step: str) -> None:
        """One line of progress, in the log that `up` reads aloud."""
        print(f"{time.monotonic() - self._began:6.1f} s  {step}", flush=True)

    # Starting

    def _start(self, postgres: PostgresServer, wanted_port: int | None) -> None:
        billing, metadata = sandbox_databases(postgres, "billing", fresh=False)
        airflow_port, simulator_port = self._choose_ports(wanted_port)
        self._url = f"http://127.0.0.1:{airflow_port}"
        services = SandboxServices(billing, metadata, f"http://127.0.0.1:{simulator_port}")
        environment = _server_environment(services, self._url)
        migration = _Migration(metadata, environment)
        if migration.is_running:
            self.say("preparing Airflow's metadata database; meanwhile")
        self.say("starting the Stripe simulator")
        simulator = ["sandbox.stripe_simulator", "--port", str(simulator_port), "--state-dir", str(HOME / "simulator")]
        # A new account begins long before the usage does, so that its subscriptions cover all of it, and what is back-filled by hand.
        beginning = f"{first_window(system_clock()).start - SUBSCRIBED_BEFORE:%Y-%m-%dT%H:%M:%SZ}"
        self._begin("stripe-simulator", [*simulator, "--clock", beginning, "--api-key", SECRET_KEY], environment)
        self._wait("the Stripe simulator", SIMULATOR_SECONDS, lambda: _answers(f"{services.stripe_base}/simulator/health"))
        # As the runbook asks of an account.
        _post(f"{services.stripe_base}/simulator/settings", {"invoice_grace_seconds": LONGEST_GRACE.total_seconds()})
        prepare_billing_database(billing)
        with psycopg.connect(billing) as db:
            linked = link_tenants(db, live_tenants(), services.stripe_base, services.secret_key)
            if linked:
                self.say(f"gave {linked} tenants a Stripe customer and a subscription")
            _post(f"{services.stripe_base}/simulator/clock", {"mode": "real"})
            secret = renew_webhook(f"{self._url}/api/billing/webhook", services.stripe_base, services.secret_key)
            environment["STRIPE_WEBHOOK_SECRET"] = secret
            # Before Airflow is there: the runs that it starts at once find the missed hours complete.
            arrived = let_usage_arrive(db, system_clock())
            self.say(f"{arrived:,} calls of token usage have arrived since the last time")
        self._begin("live-usage", ["sandbox.live_usage", billing], environment)

        self._wait("Airflow's metadata database", HEALTHY_SECONDS, lambda: not migration.is_running)
        migration.finish()
        self.say("starting Airflow, which needs some twenty seconds")
        started_at = datetime.now(UTC)
        api = AirflowApi(self._url)
        # Logs are read from the disk; the servers for them would listen on every address.
        server = self._begin(
            "api-server", ["airflow", "api-server", "--host", "127.0.0.1", "--port", str(airflow_port), "--workers", "1"], environment
        )
        self._begin("dag-processor", ["airflow", "dag-processor"], environment)
        # Another program may have taken the port since it was free, and may even be another Airflow.
        self._wait("the api-server", HEALTHY_SECONDS, lambda: server.listens() and _answers(f"{api.url}/api/v2/monitor/health"))
        self.say("  api-server is there")
        # Only now: a task that finds no api-server to report to fails, and is tried again minutes later.
        self._begin("scheduler", ["airflow", "scheduler", "--skip-serve-logs"], environment)
        self._begin("triggerer", ["airflow", "triggerer", "--skip-serve-logs"], environment)
        self._wait_until_healthy(api, started_at)
        self._run_missed_windows(api, billing)

    def _choose_ports(self, wanted: int | None) -> tuple[int, int]:
        """For Airflow and for the simulator: the ports of the last time where they are free. Raises StackFailed."""
        file = HOME / "ports.json"
        try:
            kept = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):
            kept = {}
        if wanted is not None and not is_free(wanted):
            raise StackFailed(f"port {wanted} on 127.0.0.1 is taken (`lsof -i :{wanted}` names who has it): choose another PORT")
        usual = [AIRFLOW_PORTS[0], *filter(None, [kept.get("airflow")]), *AIRFLOW_PORTS[1:]]
        airflow = wanted or free_port(HOME, usual)
        simulator = free_port(HOME / "simulator", filter(None, [kept.get("simulator")]))
        if airflow is None or simulator is None:
            raise StackFailed("no port of 127.0.0.1 is free")
        if airflow != (wanted or usual[0]):
            self.say(f"port {usual[0]} is taken, Airflow takes {airflow}")
        file.write_text(json.dumps({"airflow": airflow, "simulator": simulator}))
        return airflow, simulator

    def _begin(self, name: str, module: list[str], environment: dict[str, str]) -> Part:
        part = Part(name, [sys.executable, "-m", *module], environment, fresh_log(name))
        self._parts[name] = part
        self._save()
        return part

    def _wait(self, what: str, seconds: float, is_ready: Callable[[], bool]) -> None:
        """Returns once it is ready. Raises StackFailed when any part dies meanwhile, with the end of its log, or time is over."""
        deadline = time.monotonic() + seconds
        while not is_ready():
            for part in self._parts.values():
                if part.has_ended():
                    raise StackFailed(f"{part.name} {part.how_it_ended()} while starting. Its log, {part.log}, ends:\n{part.tail()}")
            if time.monotonic() > deadline:
                raise StackFailed(f"{what} is not ready after {seconds:.0f} s; see {LOGS}")
            time.sleep(0.2)

    def _wait_until_healthy(self, api: AirflowApi, started_at: datetime) -> None:
        """Waits for a heartbeat of this life of every server, and for the DAG to be read."""
        missing = ["dag_processor", f"the DAG {DAG_ID}", "scheduler", "triggerer"]

        def is_ready() -> bool:
            with suppress(OSError, ValueError, AirflowRefused):
                beats = api.heartbeats()
                present = {name for name, beat in beats.items() if beat >= started_at}
                if "dag_processor" in present and api.is_paused(DAG_ID) is not None:
                    present.add(f"the DAG {DAG_ID}")
                for name in [name for name in missing if name in present]:
                    self.say(f"  {name.replace('dag_processor', 'dag-processor')} is there")
                    missing.remove(name)
            return not missing

        try:
            self._wait("Airflow", HEALTHY_SECONDS, is_ready)
        except StackFailed as failure:
            errors = {}
            with suppress(OSError, ValueError, AirflowRefused):
                errors = api.import_errors()
            told = "".join(f"\n{file} does not load:\n{error}" for file, error in errors.items())
            raise StackFailed(f"{failure}{told}\nstill missing: {', '.join(missing)}") from failure
        for file, error in api.import_errors().items():
            self.say(f"{file} does not load: {error.strip().splitlines()[-1]}")

    def _run_missed_windows(self, api: AirflowApi, billing: str) -> None:
        """Starts the runs that nobody started while the sandbox was down: of every closed window that holds unbilled usage and never
        had a run. Without the last window: that run the scheduler starts by itself, and where another has taken its logical date it
        would try, and log that it cannot, every second until the next hour."""
        if api.is_paused(DAG_ID):
            self.say(f"{DAG_ID} is paused; nothing is billed until somebody switches it on")
            return
        last = last_closed_window(system_clock())
        with psycopg.connect(billing) as db:
            unbilled = db.execute(
                "SELECT DISTINCT date_trunc('hour', created_at, 'UTC') FROM token_usage"
                " WHERE NOT billed AND created_at >= %s AND created_at < %s ORDER BY 1",
                [last.start - LONGEST_BILLABLE, last.start],
            ).fetchall()
        note = "Started by `make up`: nothing ran when this hour closed."
        started = sum(api.run_window(DAG_ID, Window(start), note) for (start,) in unbilled)
        if started:
            self.say(f"started {started} runs of {DAG_ID} for past hours; they are green within a minute or so")

    # Running

    def _keep_running(self, postgres: PostgresServer) -> None:
        """Starts again what dies, for ever."""
        while True:
            time.sleep(1.0)
            if not postgres.is_running():
                self.say("PostgreSQL has ended; starting it again")
                with suppress(PostgresError):
                    postgres.start()
            for part in self._parts.values():
                if part.has_ended() and time.monotonic() - part.launched_at > RESTART_PAUSE:
                    self.say(f"{part.name} {part.how_it_ended()}; starting it again (its log: {part.log})")
                    _kill_rest_of(part.name)  # children of a killed scheduler live on, and would work beside the new one's
                    part.launch()
                    self._save()

    # Stopping

    def _stop(self) -> None:
        """Ends all parts, those first that use the others; kills what does not end by itself."""
        self._phase = "stopping"
        self._save()
        self.say("stopping")
        users = ("scheduler", "triggerer", "dag-processor", "live-usage")
        self._end([part for name, part in self._parts.items() if name in users], SERVER_SECONDS)
        # Tasks report to the api-server until they end.
        self._end([part for name, part in self._parts.items() if name not in users], REST_SECONDS)
        _kill_rest_of(None)

    def _end(self, parts: list[Part], seconds: float) -> None:
        for part in parts:
            part.child.terminate()
        deadline = time.monotonic() + seconds
        for part in parts:
            try:
                part.child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.say(f"{part.name} does not end within {seconds:.0f} s; killing it")
                part.child.kill()
                part.child.wait()

    def _save(self) -> None:
        pids = {SUPERVISOR: os.getpid(), **{name: part.child.pid for name, part in self._parts.items()}}
        created = {}
        for name, pid in pids.items():
            with suppress(psutil.Error):
                created[name] = psutil.Process(pid).create_time()
        Stack(self._phase, self._url, pids, created).save()  # type: ignore[arg-type]


class _Migration:
    """Airflow's metadata database brought up to date: seconds that are saved where the last migration, by the same version of
    Airflow, left the database as it is."""

    def __init__(self, metadata: str, environment: dict[str, str]) -> None:
        self._metadata = metadata
        self._kept = HOME / "airflow" / "migrated.json"
        self._part: Part | None = None
        if not self._is_done():
            self._part = Part("migration", [sys.executable, "-m", "airflow", "db", "migrate"], environment, fresh_log("migration"))

    @property
    def is_running(self) -> bool:
        return self._part is not None and not self._part.has_ended()

    def finish(self) -> None:
        """Remembers what the database is like now. Raises StackFailed with the end of the log of a migration that failed."""
        if self._part is None:
            return
        if self._part.child.returncode != 0:
            raise StackFailed(f"Airflow could not prepare its metadata database; {self._part.log} ends:\n{self._part.tail()}")
        self._kept.write_text(json.dumps(self._present()))

    def _is_done(self) -> bool:
        try:
            return bool(json.loads(self._kept.read_text()) == self._present())
        except (FileNotFoundError, ValueError, psycopg.errors.UndefinedTable):
            return False

    def _present(self) -> dict[str, str]:
        with psycopg.connect(self._metadata) as db:
            revisions = db.execute("SELECT version_num FROM alembic_version").fetchall()
        return {"airflow": version("apache-airflow"), "revision": ", ".join(revision for (revision,) in revisions)}


def _server_environment(services: SandboxServices, url: str) -> dict[str, str]:
    """What Airflow's servers need beyond what its tasks do."""
    home = HOME / "airflow"
    environment = airflow_environment(services, home, replayed=False)
    unproxied = ",".join(filter(None, [environment.get("NO_PROXY") or environment.get("no_proxy"), "127.0.0.1", "localhost"]))
    return {
        **environment,
        "BILLING_SANDBOX_HOME": str(HOME.resolve()),
        "NO_PROXY": unproxied,  # tasks reach the api-server, and the stages Stripe's stand-in, on this machine
        "no_proxy": unproxied,
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__INSTANCE_NAME": "Token billing (sandbox)",
        "AIRFLOW__API__SECRET_KEY": kept_secret("api"),
        "AIRFLOW__API_AUTH__JWT_SECRET": kept_secret("jwt"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        # The DAGs are there to be seen running; one that somebody pauses stays paused.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        # Whoever reaches 127.0.0.1 may do everything: only for a sandbox.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        # What a kill interrupted goes on after half a minute instead of five.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    }


def _kill_rest_of(name: str | None) -> None:
    """Kills every process that a part left behind; None: that any part did."""
    kill_all(lambda: [process for process, part in stack_processes() if name in (None, part)])


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _post(url: str, body: Mapping[str, object]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.stack_supervisor", description=__doc__)
    parser.add_argument("--port", type=int, help="where Airflow listens on 127.0.0.1")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    supervisor = Supervisor()
    try:
        supervisor.run(options.port)
    except _Ended:
        supervisor.say("stopped")
        return 0
    except (StackFailed, PostgresError) as failure:
        print(str(failure), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

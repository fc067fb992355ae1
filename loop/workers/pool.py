"""Worker pool of a campaign: the engines, and one worker each for judge and trainer."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from judges.context import ModelRef
from loop.config.settings import Config, JudgeConfig
from loop.engines.base import environments
from loop.engines.judge_engine import JudgeEngine, judge_engine
from loop.prompts.chat_template import ChatFormat, chat_format
from loop.store.lineage import inherited_caches
from loop.store.model_refs import model_of
from loop.store.run_folder import RunFolder
from loop.store.run_records import Json
from loop.view.display import Bar, Display
from loop.workers.entry import Arguments
from loop.workers.judge_service import PreparedJudge
from loop.workers.made_with import first_made_with, mixed
from loop.workers.process import Job, Worker, call, call_all
from loop.workers.shards import JudgeHandle, Shard, ShardQueue, ShardTotals

ENGINE_SERVICE = "loop.workers.sampling_service:EngineService"


class WorkerPool:
    """The workers: the policy's engines, judge (two if the evaluation has its own), trainer, and engines of judges' own
    models. Each starts with its first job and stays until the campaign ends."""

    def __init__(self, run: RunFolder, config: Config, display: Display) -> None:
        self.before = first_made_with(run)
        threads = run.base().threads if run.promotion(0).exists() else None
        engine = {"settings": config.engine, "chat": chat_format(config.model), "threads": threads}
        engine |= {"before": self.before, "exact": config.sampling.exact}
        places = environments(config.engine, (self.before or {}).get("engine.threads"))
        self.run, self.config, self.display = run, config, display
        self.initial: ModelRef | None = None
        self.warned = ""
        self.judge_engines: list[tuple[JudgeEngine, Worker]] = []
        self.replicas = [
            self._worker(f"engine-{number}" if len(places) > 1 else "engine", ENGINE_SERVICE, engine, place)
            for number, place in enumerate(places, 1)
        ]
        self.judge = self.eval_judge = self._judge("judge", config.judge) if config.judge is not None else None
        if config.eval_judge is not None and config.eval_judge != config.judge:
            self.eval_judge = self._judge("eval-judge", config.eval_judge)
        self.trainer = self._worker("trainer", "loop.workers.online_service:OnlineTrainService", {"threads": threads})

    def _worker(
        self, name: str, service: str, arguments: Arguments, environment: Mapping[str, str] = MappingProxyType({})
    ) -> Worker:
        settings, log = self.config.engine, self.run.log(name)
        if (threads := environment.get("OMP_NUM_THREADS")) is not None:
            arguments = arguments | {"threads": int(threads)}
        patience = (settings.stall_seconds, settings.retries)
        return Worker(name, service, arguments, log, *patience, self._event, environment)

    def _judge(self, name: str, settings: JudgeConfig) -> JudgeHandle:
        run = self.run
        base = model_of(run, run.base().policy).path if run.promotion(0).exists() else None
        judging = {"settings": settings, "cache": run.verdict_cache, "parents": inherited_caches(run)}
        judging |= {"model": self.config.model, "base": base}
        return JudgeHandle(self._worker(name, "loop.workers.judge_service:JudgeService", judging), judging)

    def _event(self, what: str, **details: Any) -> None:
        self.run.event(what, **details)
        if what == "worker_lost":
            self.display.warn(f"the {details['worker']} worker was lost at {details['job']}: {details['why']}")
            if details["worker"] == self.trainer.name:
                self._free_memory()

    def _free_memory(self) -> None:
        """End the idle engines, whose memory a round that was killed may have lacked; their next job starts them."""
        for worker in self.engines:
            if worker.job is None:
                worker.close()

    def close(self) -> None:
        """End all workers, the trainer last."""
        for worker in (*self.engines, *self.judges, self.trainer):
            worker.close()

    def stop(self) -> None:
        """Ask the trainer to end, after a checkpoint if it is making steps; `close` waits for that."""
        self.trainer.stop()

    @property
    def judges(self) -> list[Worker]:
        """The judges' workers: none, one, or one more for the evaluation."""
        handles = [handle for handle in (self.judge, self.eval_judge) if handle is not None]
        return [handle.worker for handle in {id(handle): handle for handle in handles}.values()]

    @property
    def engines(self) -> list[Worker]:
        """The policy's engines, and those of judges."""
        return [*self.replicas, *(worker for _, worker in self.judge_engines)]

    def prepare(self, judge: JudgeHandle, correct_at: float) -> Json:
        """Test a judge, decide where it judges, and return its fingerprint."""
        job = Job(f"the self-test of the {judge.worker.name}", "prepare", {"correct_at": correct_at})
        prepared: PreparedJudge = call(judge.worker, job)
        judge.measures, judge.compares = "log_probs" in prepared.needs, prepared.compares
        judge.engines = self.replicas if "generate" in prepared.needs else ()
        if (model := prepared.local_model) is not None:
            judge.engines, judge.model = [self._engine_for(judge_engine(model, self.config.engine))], model.found
            self._try_examples(judge, correct_at)
        judge.fingerprint = prepared.fingerprint
        return judge.fingerprint

    def _try_examples(self, judge: JudgeHandle, correct_at: float) -> None:
        """The user's labelled examples, for a judge that asks a model of its own."""
        if judge.judging["settings"].examples is None:
            return
        assert judge.model is not None
        model = {"model": judge.model.folder, "model_hash": judge.model.digest}
        details = {"correct_at": correct_at, "judging": judge.judging, **model}
        call(judge.places[0], Job(f"the labelled examples of the {judge.worker.name}", "try_examples", details))

    def _engine_for(self, wanted: JudgeEngine) -> Worker:
        """The engine of a judge's own model; judges that ask for the same one share it."""
        for known, worker in self.judge_engines:
            if known == wanted:
                return worker
        arguments = {"settings": wanted.settings, "chat": ChatFormat(wanted.chat_template_kwargs)}
        name = f"judge-engine{f'-{len(self.judge_engines) + 1}' if self.judge_engines else ''}"
        self.judge_engines.append((wanted, self._worker(name, ENGINE_SERVICE, arguments)))
        return self.judge_engines[-1][1]

    def label(self, shards: Sequence[Shard], judge: JudgeHandle | None, bar: Bar) -> ShardTotals:
        """Sample and judge every shard that is not finished; without a judge, only sample."""
        totals = ShardQueue(shards, self.replicas, judge, self.initial, bar, self.run.event).work()
        self.before = self.before or totals.made_with
        if totals.made_with and (changed := mixed(self.before, totals.made_with)) and changed != self.warned:
            self.warned = changed
            self.run.event("warning", text=f"the samples of this run are mixed: {changed}")
            self.display.warn(f"the samples of this run are mixed (sampling.exact is false): {changed}")
        return totals

    def train(self, job: Job) -> Any:
        """Run a training job while engines and judges leave the device to it."""
        users = [(worker, "sleep") for worker in self.engines] + [(worker, "rest") for worker in self.judges]
        name = "giving back the device's memory"
        call_all([(worker, Job(name, method, {})) for worker, method in users if worker.running])
        return call(self.trainer, job)

"""Training runs in processes of their own, forked from one that has imported everything: they start at once."""

import gc
import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "WANDB_MODE": "disabled",
}
ROOT = Path(__file__).parents[1]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["extratime.train.sft", "extratime.train.self_eval", "extratime.train.mrt", "deepspeed", "wandb"]
)


@dataclass
class Job:
    """A running process and the file its words go to."""

    process: multiprocessing.Process
    log: Path

    def wait(self, seconds=120):
        """Its exit code (minus the signal's number if one killed it) and all it said."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.log.read_text())
        return self.process.exitcode, self.log.read_text()


def start(log, function, *args, env=None):
    """`function(*args)` in a process of its own."""
    process = _forks.Process(target=_inside, args=(str(log), {**QUIET, **(env or {})}, function, args))
    process.start()
    return Job(process, Path(log))


def _inside(log, env, function, args):
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(words, 1)
    os.dup2(words, 2)
    sys.stdout = sys.stderr = os.fdopen(words, "w", buffering=1)
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins deaf to it
    # What was imported is never freed: the trainer's collection need not look at it.
    gc.freeze()
    function(*args)


def recipe(name, argv, before=None):
    """What `python -m extratime.train.NAME …` does, after `before()`."""
    module = importlib.import_module(f"extratime.train.{name}")
    if before:
        before()
    module.main([str(word) for word in argv])


def train(folder, name, *argv, before=None, env=None):
    """Run a recipe; its exit code and what it said."""
    return begin(folder, name, *argv, before=before, env=env).wait()


def begin(folder, name, *argv, before=None, env=None):
    """Start a recipe."""
    return start(Path(folder) / "log", recipe, name, argv, before, env=env)


def together(folder, config, name, *argv, before=None, processes=2):
    """Run a recipe as `accelerate launch --config_file CONFIG --num_processes N` does; exit codes and words of all."""
    launch = environment(config, processes, name)
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    jobs = [
        start(Path(folder) / f"log{i}", recipe, name, argv, before, env=launch | ranks[i]) for i in range(processes)
    ]
    return [job.wait() for job in jobs]


def environment(config, processes, name):
    """The variables that accelerate's launcher sets for a configuration of ours."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(config), "--num_processes", str(processes), "-m", f"extratime.train.{name}"]
    args, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    args.main_process_port = free_port()
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        made = prepare_deepspeed_cmd_env(args)[1]
    else:
        made = prepare_multi_gpu_env(args)
    made = {key: value for key, value in made.items() if os.environ.get(key) != value}
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return made | world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(args.main_process_port)}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_at(event, word, count, number=signal.SIGKILL):
    """Send this process a signal at the `count`-th audited `event` with `word` among its arguments."""
    seen = 0

    def hook(name, args):
        nonlocal seen
        if name == event and word in str(args):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def die_after(step, number=signal.SIGKILL, times=1):
    """Send this process a signal, or the same again, while the gradients of step `step` + 1 are computed."""
    from transformers import Trainer

    original = Trainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            Trainer.training_step = original
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    Trainer.training_step = training_step


def only(rank, function, *args):
    """Call `function` on one process."""
    if int(os.environ["RANK"]) == rank:
        function(*args)


def shard_on_cpu():
    """Have accelerate take FSDP at its word on a CPU, too; the sharding itself is PyTorch's, and works over gloo."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def prepare(config, *act):
    """What a process under a configuration does before its run, and then `only(*act)`."""
    if config == "fsdp2":
        shard_on_cpu()
    if act:
        only(*act)


def poison(at, harm):
    """A trainer for sft whose loss, or the gradient of it alone, is not finite from step `at` + 1 on."""
    from extratime.train import sft

    class Poisoned(sft.ColumnTrainer):
        before = ()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self.state.global_step < at:
                return loss
            self.before = [weight.detach().clone() for weight in held(self.model)]
            # The root has an infinite slope at 0, its own value, and infinity times 0 is not a number.
            return loss * HARM[harm] if harm in HARM else loss + (loss * 0).sqrt()

        def train(self, *args, **kwargs):
            try:
                return super().train(*args, **kwargs)
            except ArithmeticError:
                moved = self.before and any(
                    not torch.equal(a, b) for a, b in zip(self.before, held(self.model), strict=True)
                )
                sys.stderr.write("the weights moved\n" if moved else "the weights did not move\n")
                raise

    return Poisoned


HARM = {"loss": float("nan"), "infinite": float("inf")}


def held(model):
    """What this process holds of the weights."""
    return [getattr(weight, "ds_tensor", weight) for weight in model.parameters()]


def use_poison(at, harm):
    """Have sft train with it."""
    from extratime.train import sft

    sft.ColumnTrainer = poison(at, harm)


def reward_letters():
    """Have grpo, and mrt, reward what a random model can do: letters whose codes are even."""
    from extratime.train import grpo

    grpo.Problems.reward = lambda self, text, problem: sum(ord(letter) % 2 == 0 for letter in text) / (len(text) + 1)


def hear_letters():
    """Have judge_grpo take the code of what was said for a verdict: a random model comes to either."""
    from extratime.train import judge_grpo

    judge_grpo.verdict = lambda text, judge, form: sum(map(ord, text)) % 2 if text else None


def in_turn(*functions):
    """Call each function."""
    for function in functions:
        function()


def use_hub(folder):
    """Look for hub models in a folder of the test; the forked process has read its environment already."""
    from huggingface_hub import constants
    from transformers.utils import hub

    constants.HF_HUB_CACHE = hub.constants.HF_HUB_CACHE = folder


def command_line(argv):
    """`extratime …`."""
    from extratime.evaluate.cli import main

    raise SystemExit(main(argv))


def stay_off_the_network():
    """Make any connection to another machine an error."""

    def hook(event, args):
        if (
            event == "socket.connect"
            and isinstance(args[1], tuple)
            and not str(args[1][0]).startswith(("127.", "::1"))
        ):
            raise PermissionError(f"the network was used: {args[1]}")
        if event == "socket.getaddrinfo" and args[0] not in ("localhost", "127.0.0.1", None):
            raise PermissionError(f"the network was used: {args[0]}")

    sys.addaudithook(hook)


def write_yaml(path, **settings):
    """A recipe file."""
    Path(path).write_text(yaml.safe_dump({k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}))
    return Path(path)


def write_rows(path, rows):
    """A JSONL file."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(path)


def sums(count=24, seed=0):
    """Rows for sft."""
    rng = random.Random(seed)
    pairs = [(rng.randrange(10), rng.randrange(10)) for _ in range(count)]
    return [{"prompt": f"{a}+{b}=", "completion": str(a + b) * rng.randint(1, 4)} for a, b in pairs]


def draws(problems=6, each=4, seed=0):
    """Rows for self_eval: what begins with "a" is right."""
    rng = random.Random(seed)
    made = []
    for problem in range(problems):
        for i in range(each):
            right = rng.random() < 0.5 if i else problem % 2 == 0
            text = "".join(rng.choice("abc" if right else "xyz") for _ in range(rng.randint(2, 9)))
            made.append({"problem": problem, "prompt": f"p{problem}?", "response": text, "reward": float(right)})
    return made


def solutions(count=24, seed=0):
    """Rows for prm: a step is right if it has no "x", and so is what comes before it."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        steps = ["".join(rng.choice("abcx") for _ in range(rng.randint(2, 6))) for _ in range(rng.randint(1, 3))]
        labels = [float(not any("x" in step for step in steps[: t + 1])) for t in range(len(steps))]
        made.append({"prompt": f"p{i}?", "steps": steps, "labels": labels})
    return made


def write_rollouts(folder):
    """A folder of draws as far as mrt reads it: traces of two attempts."""
    folder.mkdir()
    recipe = {"model": "embedded", "tasks": ["signs"], "strategies": ["self_consistency"], "output": str(folder)}
    write_yaml(folder / "recipe.yaml", **recipe, overrides={"signs": {"test_split": "train"}})
    trace = "1+1=2\n\nWait, 1+1=3\n\nAnswer: 3"
    drawn = [{"problem": f"signs/{i % 3}", "prompt": f"p{i % 3}", "response": trace, "reward": 0} for i in range(30)]
    write_rows(folder / "draws.jsonl", drawn)
    return folder


def pairs(count=5):
    """Rows for judge_grpo."""
    return [{"problem": str(i), "question": f"{i}?", "right": "a" * (i + 1), "wrong": "x"} for i in range(count)]


def logged(checkpoint):
    """Every number that a run logged up to a checkpoint, but for clocks."""
    history = json.loads((Path(checkpoint) / "trainer_state.json").read_text())["log_history"]
    clocks = ("per_second", "step_time")
    return [{key: v for key, v in entry.items() if not any(clock in key for clock in clocks)} for entry in history]

"""Runs in an engine environment: one engine, one recording for each case that is asked for.

drive.py ENGINE MODEL ARGS.json OUT_FD: reads lines of JSON on stdin, {"case": NAME, "daemon": ADDRESS, "folder": PATH,
"variants": {NAME: FOLDER}, "adapter": FOLDER}, and answers each with a line: "done", or what went wrong.
"""

import contextlib
import json
import os
import random
import sys
import traceback

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch

from corpus.case import Ask
from corpus.inside import bench, faults
from corpus.inside.prompts import prompts
from corpus.table import CASES


class Run:
    """One case on the engine."""

    def __init__(self, engine, case, order):
        self.bench, self.case, self.order = engine, case, order
        self.view, self.marks, self.undo = [], [], contextlib.ExitStack()
        self.num_asked = 0

    def record(self):
        case, engine = self.case, self.bench
        engine.set_mode(case.mode)
        engine.reset_cache()
        torch.manual_seed(case.seed)
        random.seed(case.seed)
        with self.undo:
            if case.probe:
                engine.probe(f"{self.order['folder']}/probes")
                self.undo.callback(engine.probe, None)
            engine.open(self.order["daemon"])
            try:
                for fault in case.faults:
                    if fault.since == 0:
                        self.switch_on(fault)
                asks = [step for step in case.steps if isinstance(step, Ask)]
                for step in case.steps:
                    self.ask(step, last=step is asks[-1]) if isinstance(step, Ask) else self.do(step)
            finally:
                self.undo.close()
                engine.close()

    def switch_on(self, fault):
        self.undo.enter_context(faults.FAULTS[fault.name](self.bench, **fault.args))

    def do(self, step):
        if step.what == "load":
            self.bench.load(self.order["variants"][step.argument])
        elif step.what == "claim":  # an update that the trainer sent and the engine did not apply
            self.bench.engine.collective_rpc(receive_nothing)
        elif step.what == "reset":
            self.bench.reset_cache()
        elif step.what == "reopen":
            self.bench.close()
            if step.argument:
                self.bench.load_quietly(self.order["variants"][step.argument])
            self.bench.reset_cache()
            self.bench.open(self.order["daemon"])
        elif step.what == "fault":
            self.switch_on(next(f for f in self.case.faults if f.name == step.argument))
        else:
            raise ValueError(step.what)

    def ask(self, ask, last):
        from vllm import SamplingParams

        seed = self.case.seed
        own = prompts(ask.prompt, self.case.use, seed, ask.num, self.bench.tokenizer)
        fields = {"temperature": 1.0, "logprobs": 0, "max_tokens": ask.tokens, "ignore_eos": True, **ask.sampling}
        short, each = fields.pop("short", 0), fields.pop("each", ({},))
        due = dict(ask.during)
        for fault in self.case.faults if last else ():
            if fault.since > 0:
                due[fault.since] = fault
        counts = {}
        for number, prompt in enumerate(own):
            name = f"{self.num_asked}-{number}"
            more = {"max_tokens": fields["max_tokens"] // 2} if short and number >= short else {}
            more |= each[number % len(each)]
            counts[name] = 0
            self.bench.add(name, prompt, SamplingParams(**{**fields, **more}), self.adapter(ask.lora, number))
        self.num_asked += 1
        while self.bench.engine.has_unfinished_requests():
            for at in [k for k in due if max(counts.values()) >= k]:
                what = due.pop(at)
                self.marks.append({"at": at, "tokens": dict(counts)})
                self.switch_on(what) if hasattr(what, "since") else self.do(what)
            for output in self.bench.engine.step():
                counts[output.request_id] = max(len(c.token_ids) for c in output.outputs)
                if output.finished:
                    self.note(output)
        assert not due, due

    def adapter(self, which, number):
        if which in ("", "none") or (which == "half" and number % 2 == 0):
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self.order["adapter"])

    def note(self, output):
        for completion in output.outputs:
            pairs = zip(completion.logprobs, completion.token_ids, strict=True)
            self.view.append(
                {
                    "request_id": output.request_id,
                    "index": completion.index,
                    "prompt_token_ids": list(output.prompt_token_ids),
                    "token_ids": list(completion.token_ids),
                    "logprobs": [at[token].logprob for at, token in pairs],
                    "finish_reason": completion.finish_reason,
                }
            )

    def write(self):
        folder = self.order["folder"]
        with open(f"{folder}/view.jsonl", "w") as file:
            file.writelines(json.dumps({"request": n, **row}) + "\n" for n, row in enumerate(self.view))
        with open(f"{folder}/marks.json", "w") as file:
            json.dump(self.marks, file)


def receive_nothing(worker):
    pass


def main(generation, model, args, out):
    by_name = {case.name: case for case in CASES}
    engine = {"v0": bench.V0}.get(generation, bench.V1)(model, json.loads(args))
    has = "base"
    with os.fdopen(int(out), "w") as answers:
        for line in sys.stdin:
            order = json.loads(line)
            case = by_name[order["case"]]
            run = Run(engine, case, order)
            try:
                if has != case.engine_weights:
                    engine.load_quietly(order["variants"][case.engine_weights])
                    has = case.engine_weights
                if any(getattr(step, "what", "") in ("load", "reopen") for step in flat(case.steps)):
                    has = "changed"
                run.record()
                run.write()
                answer = "done"
            except Exception as error:
                traceback.print_exc()
                engine.end_requests()
                answer = f"{type(error).__name__}: {error}".replace("\n", " ")
            print(answer, file=answers, flush=True)


def flat(steps):
    for step in steps:
        yield step
        yield from (do for _, do in getattr(step, "during", ()))


if __name__ == "__main__":
    import importlib

    # as a module: the functions that vLLM pickles by name must not be of __main__
    importlib.import_module("corpus.inside.drive").main(*sys.argv[1:])

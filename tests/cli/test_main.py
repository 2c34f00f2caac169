"""The command line: quick help, one-line mistakes with exit code 2, flags over the file, plans, Ctrl-C."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nlf import config
from nlf.cli import arguments, launch
from nlf.cli import main as cli
from nlf.cli import train as train_command
from nlf.cli.main import main
from nlf.config.objective import DEFAULTS
from nlf.errors import UserError

RECIPE = Path(__file__).parents[2] / "src/nlf/assets/recipes/toxicity-embedded.yaml"
TOKEN = "hf_TokenOfThisTest99"


@pytest.fixture
def trained(monkeypatch):
    """What `train_from_config` is called with, instead of training."""
    calls = []
    import nlf.report

    monkeypatch.setattr(nlf.report, "write_report", lambda runs: runs[0] / "report.html")
    monkeypatch.setattr(train_command, "train_from_config", lambda *call: calls.append(call))
    return calls


def fails(capsys, *argv: str) -> str:
    """The one line that a mistake prints."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nlf: error: ")
    assert err.count("\n") == 1
    return err


def test_help_imports_nothing_heavy_and_documents_every_knob():
    code = (
        "import sys\nfrom nlf.cli.main import main\ntry:\n    main(['train', '--help', 'all'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'sklearn', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in arguments.train_knobs():
        assert f"--{name}" in done.stdout, name
    for group in (*config.OPTION_GROUPS, arguments.INHERITED):
        assert f"\n{group}:" in done.stdout, group


def test_commands_are_listed_and_the_version_told(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  nlf {name}" in out for name in cli.COMMANDS) and len(cli.COMMANDS) == 13
    assert main([]) == 2
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "nlf 0.1.0\n"


def test_every_command_has_help(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"nlf {name}" in capsys.readouterr().out


def test_near_matches_for_commands_flags_and_keys(capsys, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("beta: 1\n\nlearning_rte: 1e-5\n", encoding="utf-8")
    assert "did you mean train?" in fails(capsys, "trian")
    assert "did you mean --learning_rate?" in fails(capsys, "train", "--learning_rte", "1e-5")
    assert "r.yaml:3: unknown key learning_rte; did you mean learning_rate?" in fails(
        capsys, "train", "--config", str(recipe)
    )
    assert "see --help" in fails(capsys, "train", "--zzzzzz")
    assert "unexpected 'stray'" in fails(capsys, "train", "--beta", "1", "stray")


def test_flags_are_never_abbreviated(capsys):
    assert "unknown flag --learning_rat" in fails(capsys, "train", "--learning_rat", "1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("beta: strong", "r.yaml:1: beta: 'strong' where float | null was expected"),
        ("beta: 1\nbeta: 2", "r.yaml:2: beta is given twice"),
        ("- beta", "r.yaml:1: one `name: value` a line was expected"),
        ("beta: [", "r.yaml:1: not YAML"),
        ("top_p: 3", "top_p: 3"),
        ("resume: true", "unknown key resume"),
    ],
)
def test_a_broken_recipe_is_one_line_with_file_and_line(capsys, tmp_path, text, words):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text, encoding="utf-8")
    assert words in fails(capsys, "train", "--config", str(recipe))


def test_a_missing_recipe(capsys, tmp_path):
    said = fails(capsys, "train", "--config", str(tmp_path / "none.yaml"))
    assert f"there is no file {tmp_path}/none.yaml, and no shipped recipe of that name" in said
    assert "toxicity-embedded," in fails(capsys, "train", "--config", "recipes/toxicity-embedded.yaml")
    assert "the shipped ones are sentiment, toxicity" in fails(capsys, "evaluate", "--model", "m", "--task", "toxic")


def test_a_shipped_recipe_is_named_without_a_path_and_a_file_by_its_path(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "sentiment-embedded", "--use_cpu"]) == 0
    (tmp_path / "mine.yaml").write_text("reward_funcs: audit\n", encoding="utf-8")
    assert main(["train", "--config", "mine.yaml", "--use_cpu"]) == 0
    assert [call[0].reward_funcs for call in trained] == [["sentiment"], ["audit"]]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(name in told for name in arguments.shipped("recipes")) and len(arguments.shipped("recipes")) >= 12


def test_flags_override_the_file(trained, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"beta: 0.5\nnll_coef: 1\ntags: [good, bad]\nquantile_weights: null\noutput_dir: {tmp_path}/run\n"
    )
    argv = ["train", "--config", str(recipe), "--beta", "0.25", "--dtype=bfloat16", "--max-prompts", "7", "--use_cpu"]
    assert main([*argv, "--no_replay", "--resume_from_checkpoint"]) == 0
    args, model, data, resume = trained[0]
    assert (args.beta, args.nll_coef, args.tags, args.quantile_weights) == (0.25, 1, ["good", "bad"], None)
    assert (model.dtype, data.max_prompts, args.replay, args.use_cpu) == ("bfloat16", 7, False, True)
    assert args.learning_rate == DEFAULTS["learning_rate"].other
    assert resume is True


def test_resume_from_a_checkpoint_folder(trained, tmp_path, capsys):
    folder = tmp_path / "copied" / "checkpoint-20"
    flags = ["train", "--output_dir", str(tmp_path / "run"), "--use_cpu", "--resume_from_checkpoint", str(folder)]
    assert main(flags) == 2 and "checkpoint-20: no such checkpoint" in capsys.readouterr().err
    folder.mkdir(parents=True)
    main(flags)
    assert trained[0][3] == str(folder)


def test_a_combination_that_transformers_refuses_is_one_line(capsys, tmp_path):
    argv = [
        "train",
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "--load_best_model_at_end",
        "--save_strategy",
        "steps",
    ]
    assert "requires the save and eval strategy to match" in fails(capsys, *argv)


def test_dry_run_tells_the_cost(capsys, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "number {i}"}}\n' for i in range(30)), encoding="utf-8")
    files = ["--dataset", str(prompts), "--eval_dataset", str(prompts), "--max_eval_prompts", "10"]
    small = ["--prompts_per_iteration", "null", "--num_generations", "2", "--eval_num_generations", "3"]
    small += ["--contrast_coef", "1"]
    rewards = ["--reward_funcs", "test_main:remote_scorer", "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--dry_run", *files, *small, *rewards]) == 0
    out = capsys.readouterr().out
    assert "60 an iteration, 180 in all" in out
    assert "90 (3 evaluations of 10 prompts)" in out
    assert "at most 17,280, 64 a completion" in out  # (180 + 90) x 64, the default for text
    assert "270; 270 of them remote, 0.1 hours" in out
    assert "120 of 64 completions, each run 3 times" in out
    assert "credit" not in out and "prefixes" not in out
    assert not (tmp_path / "run").exists()
    assert main(["train", "--dry_run", *files, *small, *rewards, "--rate_limit", "10"]) == 0
    assert "270; 270 of them remote, 0.0 hours at 10 a second" in capsys.readouterr().out


def test_dry_run_tells_how_a_run_by_credit_trains(capsys, inputs):
    """The sizes follow the objective, and the learning rate the 12,928 parameters: 2e-4 √(3,000,000 / 12,928)."""
    model, prompts = inputs
    command = ["train", "--dry_run", "--model_name_or_path", model, "--dataset", str(prompts)]
    for flags, words in (
        (
            [],
            "learning rate 0.003 for 0.0 M parameters, 15 iterations of 64 × 4 completions and 4 steps of 64 (in",
        ),
        (["--use_peft"], "learning rate 0.03 for 0.0 M parameters, 15 iterations"),
        (
            ["--learning_rate", "1e-5", "--beta", "0.2"],
            "learning rate 1e-05, 15 iterations of 64 × 4 completions and 4 steps of 64 (in",
        ),
        (["--max_steps", "6"], "1.5 iterations of 64 × 4"),
    ):
        assert main([*command, *flags]) == 0
        told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        assert words in told["credit"]


def test_dry_run_counts_the_whole_model_that_is_written_for_vllm(capsys, inputs):
    model, prompts = inputs
    command = ["train", "--dry_run", "--model_name_or_path", model, "--dataset", str(prompts), "--use_peft", "true"]
    assert main(command) == 0
    assert "vLLM" not in capsys.readouterr().out
    for dtype, size in (("float32", "51.7 kB"), ("bfloat16", "25.9 kB")):  # of 12,928 parameters
        assert main([*command, "--sampler", "vllm", "--dtype", dtype]) == 0
        told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        assert told["disk, weights for vLLM"].strip() == f"about {size} while it samples"


ATTRIBUTES = """
quantile_weights: null
attributes:
  - {name: tone, reward: local, tags: [kind, rude]}
  - {name: mood, reward: sentiment, tags: [glad, so so, sad], quantile_rule: published}
"""


def test_a_recipe_of_several_attributes(trained, capsys, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"output_dir: {tmp_path}/run\n{ATTRIBUTES}", encoding="utf-8")
    assert main(["train", "--config", str(recipe), "--use_cpu"]) == 0
    args = trained[0][0]
    assert args.tags == ["kind, and glad", "rude, and so so", "rude, and sad"] and args.reward_funcs == [
        "local",
        "sentiment",
    ]
    assert args.attributes[1]["quantile_rule"] == "published"
    capsys.readouterr()
    assert main(["train", "--config", str(recipe), "--dry_run"]) == 0
    trained_on, evaluated = 3 * 512 * 4, 3 * 40 * 25  # by two rewards; an auditor scores evaluations too
    assert f"{2 * trained_on + 3 * evaluated:,}" in capsys.readouterr().out
    said = fails(capsys, "train", "--config", str(recipe), "--reward_funcs", "audit")
    assert "reward_funcs ['audit']: attributes name their own" in said
    recipe.write_text("attributes: [tone]\n", encoding="utf-8")
    assert "r.yaml:1: attributes: ['tone'] where list[dict] | null was expected" in fails(
        capsys, "train", "--config", str(recipe)
    )


def test_the_answers_of_remote_scorers_are_copied_without_a_file_to_score(monkeypatch, capsys):
    called = []
    remote = SimpleNamespace(
        configure=called.append,
        export_cache=lambda path: called.append(path) or 1234,
        import_cache=lambda path: called.append(path) or 5,
    )
    monkeypatch.setitem(sys.modules, "nlf.rewards.remote", remote)
    monkeypatch.setattr("nlf.rewards.remote", remote, raising=False)
    assert main(["score", "--export_cache", "out.jsonl", "--cache_dir", "answers"]) == 0
    assert main(["score", "--import_cache", "in.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1,234 answers written to out.jsonl", "5 answers taken from in.jsonl",
    ]  # fmt: skip
    assert called == [config.RemoteOptions(cache_dir="answers"), "out.jsonl", config.RemoteOptions(), "in.jsonl"]
    assert "path is missing" in fails(capsys, "score")


def test_planned_sizes_are_those_of_the_weights(tmp_path):
    import tiny
    from safetensors.torch import save_file

    from nlf.cli.dry_run import adapter_size, human, meta_shapes, safetensors_shapes

    model = tiny.model()
    expected = sorted(tuple(p.shape) for p in model.parameters())
    model.config.save_pretrained(tmp_path)
    assert sorted(meta_shapes(str(tmp_path), "main", False)) == expected
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, tmp_path / "model.safetensors")
    assert sorted(safetensors_shapes(tmp_path / "model.safetensors")) == expected
    assert adapter_size([(300, 16), (16, 48), (16,)], 2) == 2 * (16 + 48)
    assert (human(12), human(1234), human(5.6e9)) == ("12 B", "1.23 kB", "5.6 GB")


@pytest.mark.parametrize("kept", [4, 100])
def test_a_cut_off_file_is_found_by_a_dry_run(tmp_path, kept):
    import tiny

    from nlf.cli.dry_run import safetensors_shapes

    path = Path(tiny.save(tmp_path)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="damaged or cut-off safetensors file"):
        safetensors_shapes(path)


def remote_scorer(completions, **kwargs):
    return [0.0] * len(completions)


remote_scorer.remote = True


def test_evaluate_hands_on_its_options(monkeypatch, capsys):
    import nlf.evaluation.evaluate

    seen = []
    monkeypatch.setattr(
        nlf.evaluation.evaluate, "evaluate_command", lambda options: seen.append(options) or "the table"
    )
    argv = ["evaluate", "--model", "runs/x", "--max_prompts", "9", "--tag", "none", "--guidance_scale", ".5"]
    assert main(argv) == 0
    assert capsys.readouterr().out == "the table\n"
    options = seen[0]
    assert (options.model, options.max_prompts, options.tag, options.guidance_scales) == ("runs/x", 9, "none", [0.5])
    assert (options.num_generations, options.top_p) == (25, 0.9)
    assert config.is_open("max_completion_length", options.max_completion_length)  # it follows the run, or the prompts
    assert "--model is missing" in fails(capsys, "evaluate")


def test_env_prints_versions(capsys):
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("python", "torch", "transformers", "cpus", "memory"))


@pytest.mark.parametrize("argv", [["train", "--beta", "2"], ["train", "--resume_from_checkpoint", "true"]])
def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, argv):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", (stop, ""))
    assert main(argv) == 130
    err = capsys.readouterr().err
    assert err.count("--resume_from_checkpoint true") == 1
    assert f"nlf {' '.join(argv)}" in err


@pytest.mark.parametrize("words", [["--hub_token", TOKEN], [f"--hub_token={TOKEN}"], ["--hub-token", TOKEN]])
def test_ctrl_c_does_not_repeat_a_token(monkeypatch, capsys, words):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", (stop, ""))
    assert main(["train", *words, "--beta", "2"]) == 130
    err = capsys.readouterr().err
    assert "nlf train --beta 2 --resume_from_checkpoint true (and --hub_token)" in err and TOKEN not in err


def test_an_error_does_not_repeat_a_token_or_a_key(monkeypatch, capsys):
    def fail(argv):
        raise UserError(f"wrong: {TOKEN.upper()} and sk-key-of-this-test")

    monkeypatch.setitem(cli.COMMANDS, "train", (fail, ""))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-key-of-this-test")
    assert fails(capsys, "train", "--hub_token", TOKEN) == "nlf: error: wrong: [key] and [key]\n"


def test_a_token_of_the_wrong_type_is_not_shown(capsys, tmp_path):
    (tmp_path / "r.yaml").write_text(f"hub_token: [{TOKEN}, x]\n")
    said = fails(capsys, "train", "--config", str(tmp_path / "r.yaml"))
    assert "r.yaml:1: hub_token: a value where str | null was expected" in said and TOKEN not in said


def test_a_token_travels_to_the_started_processes_by_the_environment(monkeypatch, capsys):
    monkeypatch.setattr(os, "execv", lambda program, words: seen.extend(words))
    monkeypatch.setattr(train_command, "run", lambda values: 0)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("HF_TOKEN", "old")
    seen: list[str] = []
    words = ["--accelerate_config", "multi_gpu", "--num_processes", "2", "--hub_token", TOKEN, "--push_to_hub", "true"]
    with contextlib.suppress(UserError):  # execv would not have returned
        train_command.train(words)
    assert os.environ["HF_TOKEN"] == TOKEN and "--push_to_hub" in seen
    assert TOKEN not in " ".join(seen) and "--hub_token" not in seen


def test_errors_are_joined_to_one_line_and_shown_by_the_first_process_only(monkeypatch, capsys):
    def fail(argv):
        raise UserError("first\n  second")

    monkeypatch.setitem(cli.COMMANDS, "train", (fail, ""))
    assert fails(capsys, "train") == "nlf: error: first second\n"
    monkeypatch.setenv("RANK", "1")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line_and_other_failures_keep_their_traceback(monkeypatch, capsys):
    import errno

    def fail(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    def broken(argv):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setitem(cli.COMMANDS, "train", (fail, ""))
    assert "No space left on device" in fails(capsys, "train")
    monkeypatch.setitem(cli.COMMANDS, "train", (broken, ""))
    with pytest.raises(OSError, match="Input/output"):
        main(["train"])


def test_a_closed_pipe_is_quiet():
    pipe = subprocess.run(
        f"{sys.executable} -m nlf train --help | head -1", shell=True, capture_output=True, text=True, env=os.environ
    )
    assert pipe.stderr == ""
    assert pipe.stdout.startswith("usage")


def test_accelerate_config_starts_the_same_command(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call[1]))
    monkeypatch.setattr(train_command, "build", lambda values: (_ for _ in ()).throw(UserError("stop here")))
    monkeypatch.delenv("RANK", raising=False)
    given = [
        "--beta",
        "2",
        "--accelerate_config",
        "fsdp2",
        "--num-processes=4",
        "--mixed_precision",
        "no",
        "--seed",
        "1",
    ]
    fails(capsys, "train", *given)
    command = started[0]
    assert command[1:4] == ["-m", "accelerate.commands.launch", "--config_file"]
    assert command[4].endswith("fsdp2.yaml")
    launched, own = command[5 : command.index("nlf") - 1], command[command.index("nlf") + 1 :]
    assert launched == ["--num_processes", "4", "--mixed_precision", "no"]
    assert own == ["train", "--beta", "2", "--seed", "1"]
    assert "did you mean 'zero2'" in fails(capsys, "train", "--accelerate_config", "zero22")


def test_a_process_for_each_gpu_of_each_machine(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call[1]))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 8)
    monkeypatch.delenv("RANK", raising=False)
    launch.launch("fsdp2", {"num_machines": 2}, [], use_cpu=False)
    assert started[0][5:9] == ["--num_machines", "2", "--num_processes", "16"]
    assert started[0][-2:] == ["--bf16", "true"]  # as the config says


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--accelerate_config", "fsdp"], "did you mean 'fsdp2'"),
        (["--accelerate_config", "ddp"], "no shipped accelerate configuration of that name"),
        (["--accelerate_config", "multi_gpu", "--use_cpu"], "add --num_processes N"),
        (["--accelerate_config", "multi_gpu", "--num_processes", "two"], "invalid int value: 'two'"),
        (["--accelerate_config", str(RECIPE)], "expected an accelerate config"),
        (["--accelerate_config", "multi_gpu", "--num_processes", "0"], "--num_processes: 0 where a number above 0"),
        (["--accelerate_config", "multi_gpu", "--main_process_port", "99999"], "65535 at most"),
        (["--accelerate_config", "multi_gpu", "--mixed_precision", "int8"], "one of no, bf16, fp16"),
        (["--accelerate_config", "multi_gpu", "--num_machines", "2", "--machine_rank", "2"], "count from 0"),
        (["--num_processes", "2"], "--num_processes belongs to --accelerate_config"),
    ],
)
def test_mistakes_in_starting_several_processes(monkeypatch, capsys, flags, said):
    monkeypatch.setattr(os, "execv", lambda *call: pytest.fail("started"))
    monkeypatch.delenv("RANK", raising=False)
    assert said in fails(capsys, "train", *flags)


def test_deepspeed_configs_say_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    monkeypatch.delenv("RANK", raising=False)
    assert "pip install deepspeed" in fails(capsys, "train", "--accelerate_config", "zero3", "--num_processes", "2")


def test_processes_without_an_accelerator_do_not_each_train_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    said = fails(capsys, "train", "--output_dir", str(tmp_path))
    assert "2 processes were started, but each finds 1" in said and "--use_cpu true" in said


@pytest.mark.parametrize("words", [["--help=all"], ["--help", "all"], ["-h", "all"]])
def test_all_knobs_are_one_word_away(words, capsys):
    """`--help=all` once started a training run."""
    with pytest.raises(SystemExit) as done:
        main(["train", *words])
    assert done.value.code == 0 and "--entropy_coef" in capsys.readouterr().out
    assert main(["train", "--help", "everything"]) == 2
    assert "there is no such page" in capsys.readouterr().err


def test_the_file_to_score_may_follow_a_list_or_a_switch(monkeypatch, capsys, tmp_path):
    """`--reward_funcs local FILE` once took the file for a reward."""
    import nlf.evaluation.score

    seen = []
    monkeypatch.setattr(nlf.evaluation.score, "score_command", lambda options: seen.append(options) or "")
    file = tmp_path / "texts.jsonl"
    file.write_text("{}", encoding="utf-8")
    path = str(file)
    for words in (["--reward_funcs", "local", path], ["--reward_funcs", "local", path, "--batch_size", "64"],
                  [path, "--reward_funcs", "local"], ["--reward_funcs=local", path],
                  ["--reward_funcs", "local", "--reward_weights", "1", path],
                  ["--replay", path, "--reward_funcs", "local"], ["--quiet", path]):  # fmt: skip
        assert main(["score", *words]) == 0, words
        assert (seen[-1].path, seen[-1].reward_funcs) == (path, ["local"]), words
    for words in (["--list", path], [path, "--list"], ["--list"]):
        assert main(["score", *words]) == 0 and "scorer" in capsys.readouterr().out
    said = fails(capsys, "score", "--reward_funcs", "local", "none.jsonl")
    assert "path is missing" in said and "put it before --reward_funcs" in said


@pytest.mark.parametrize(
    ("words", "rewards"),
    [
        (["local,audit"], ["local", "audit"]),
        (["local,", "audit"], ["local", "audit"]),
        (["local,regex:a{1,2}b, c"], ["local", "regex:a{1,2}b, c"]),
        (["local"], ["local"]),
    ],
)
def test_commas_separate_rewards_in_every_command_and_in_yaml(trained, monkeypatch, tmp_path, words, rewards):
    seen = []
    for name in ("evaluate", "score"):
        module = __import__(f"nlf.evaluation.{name}", fromlist=[name])
        monkeypatch.setattr(module, f"{name}_command", lambda options: seen.append(options.reward_funcs) or "")
    file = tmp_path / "r.yaml"
    file.write_text(f"reward_funcs: {words}\n", encoding="utf-8")
    (tmp_path / "x.jsonl").write_text("{}", encoding="utf-8")
    assert main(["score", str(tmp_path / "x.jsonl"), "--reward_funcs", *words]) == 0
    assert main(["evaluate", "--model", "m", "--reward_funcs", *words]) == 0
    assert main(["evaluate", "--model", "m", "--task", str(file)]) == 0
    run = ["--output_dir", str(tmp_path / "run"), "--use_cpu"]
    assert main(["train", "--reward_funcs", *words, *run]) == 0
    assert main(["train", "--config", str(file), *run]) == 0
    assert seen + [call[0].reward_funcs for call in trained] == [rewards] * 5


def test_commas_separate_numbers_too_but_not_the_words_of_tags(trained, tmp_path):
    tags = ["Coherent, and accurate", "Lacking"]
    words = ["--quantile_weights", "2,1", "--tags", *tags, "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    assert main(["train", *words]) == 0
    assert (trained[0][0].quantile_weights, trained[0][0].tags) == ([2, 1], tags)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_can_be_quiet(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert "--quiet" in capsys.readouterr().out


def test_quiet_shows_errors_and_results_only():
    """In a process of its own: it sets the level of the log."""
    code = (
        "import logging, sys, warnings\nfrom nlf.cli import main as cli\nfrom nlf.errors import UserError\n"
        "def work(argv):\n"
        "    log = logging.getLogger('nlf.x')\n    log.info('info')\n    log.warning('warning')\n"
        "    warnings.warn('library')\n    print('result')\n    raise UserError('wrong')\n"
        "cli.COMMANDS['train'] = (work, '')\nsys.exit(cli.main(['train', *sys.argv[1:]]))"
    )
    for flags, said in (["--quiet"], []), ([], ["info", "warning", "<string>:8: UserWarning: library"]):
        done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "result\n")
        assert done.stderr.splitlines() == [*said, "nlf: error: wrong"]


def test_an_error_starts_on_its_own_line_though_a_bar_is_open(monkeypatch):
    import io

    from tqdm.auto import tqdm

    def fail(argv):
        bar = tqdm(total=3, file=sys.stderr, disable=False)  # of another library
        bar.update(1)
        raise UserError("wrong")

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(cli.COMMANDS, "train", (fail, ""))
    assert main(["train"]) == 2
    assert sys.stderr.getvalue().splitlines()[-1] == "nlf: error: wrong"


def test_a_traceback_starts_on_its_own_line_too(monkeypatch):
    import io

    from tqdm.auto import tqdm

    def fail(argv):
        tqdm(total=3, file=sys.stderr, disable=False, leave=False, delay=0).update(1)
        raise ValueError("a mistake in a reward function")

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(cli.COMMANDS, "train", (fail, ""))
    with pytest.raises(ValueError, match="a mistake"):
        main(["train"])
    assert sys.stderr.getvalue().endswith("\r")

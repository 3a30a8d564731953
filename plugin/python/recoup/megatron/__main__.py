"""`python -m recoup.megatron`: runs a Megatron-LM script with recoup, or patches Megatron's files."""
import argparse
import os
import runpy
import sys

_EPILOG = """
The script's own command line gets recoup's options beside Megatron's:
  --recompute-MODULE-num-layers N   only the first N layers recompute MODULE (mlp, core_attn, moe, ...)
  --recompute-MODULE-layers SET     these layers do, such as '1-8,12', '!last', 'every 2'
  --recompute-layer-scope SCOPE     what is counted: layers of the model (global), the stage, or MLPs (mlp)
  --recompute-mtp-modules MODULE..  what multi-token-prediction layers recompute beside unlimited modules
  --recoup-config FILE              recoup's YAML file

python -m recoup.megatron patch apply|revert|status [FOLDER] changes Megatron's files instead.
"""


def _parser():
    parser = argparse.ArgumentParser(
        prog="recoup-megatron" if sys.argv[0].endswith("recoup-megatron") else "python -m recoup.megatron",
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recoup-config", metavar="FILE",
                        help="recoup's YAML file, for scripts without Megatron's command line")
    parser.add_argument("--recoup-engine", choices=("megatron", "recoup"),
                        help="whose engine recomputes MLPs (default: Megatron's)")
    parser.add_argument("-m", dest="module", metavar="MODULE",
                        help="run a module in place of a script; ARGS follow it")
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="such as pretrain_gpt.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS",
                        help="the script's own arguments")
    return parser


def main(arguments=None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["patch"]:
        from ._patcher import main as patch

        return patch(arguments[1:])
    parser = _parser()
    module = None
    if "-m" in arguments:  # all that follows is the module's
        at = arguments.index("-m")
        if all(a.startswith("--recoup-") or b.startswith("--recoup-")
               for a, b in zip(arguments[:at], [""] + arguments[:at])):
            module, rest = arguments[at + 1:at + 2], arguments[at + 2:]
            arguments = arguments[:at]
    options = parser.parse_args(arguments)
    if module is None and options.script is None:
        parser.error("give the script to run, such as pretrain_gpt.py, or: patch apply|revert|status [FOLDER]")
    if options.recoup_config:
        os.environ["RECOUP_CONFIG"] = options.recoup_config
    if options.recoup_engine:
        os.environ["RECOUP_ENGINE"] = options.recoup_engine
    from . import install

    install()
    if module is not None:
        if not module:
            parser.error("argument -m: expected one argument")
        sys.argv = [module[0], *rest]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
        return 0
    if not os.path.isfile(options.script):
        parser.error(f"{options.script}: no such script")
    sys.argv = [options.script, *options.arguments]
    folder = os.path.dirname(os.path.abspath(options.script))
    if sys.path and sys.path[0] in ("", os.getcwd()):  # what `python -m` put there
        sys.path[0] = folder
    else:
        sys.path.insert(0, folder)
    runpy.run_path(options.script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())

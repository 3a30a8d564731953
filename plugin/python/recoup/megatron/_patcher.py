"""`python -m recoup.megatron patch ...`: the patcher of patches/megatron, in a clone or in the wheel."""
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def main(arguments) -> int:
    folders = [os.path.join(_HERE, "..", "patches", "megatron"),  # the wheel
               os.path.join(_HERE, "..", "..", "..", "..", "patches", "megatron")]
    folder = next((f for f in map(os.path.normpath, folders)
                   if os.path.isfile(os.path.join(f, "patch_megatron.py"))), None)
    if folder is None:
        print("error: recoup's patches are not in this installation; run patches/megatron/"
              "patch_megatron.py of a clone", file=sys.stderr)
        return 1
    sys.path.insert(0, folder)
    import patch_megatron

    return patch_megatron.main(patch_megatron.PATCH, arguments, "python -m recoup.megatron patch")

"""The Coral Edge TPU: what libedgetpu's silence and its few words mean.

Texts: libedgetpu, driver/package_registry.cc ("requires runtime version") and
tflite/custom_op_direct.cc ("Failed to prepare for TPU"); google-coral/edgetpu, issues 435 (the
former as users see it), 44 and 259 ("Unsupported data type", a library for another runtime).
"""

from __future__ import annotations

import re
from pathlib import Path

from agent.sensors.coral import HOW_TO_INSTALL, edgetpu_package, is_too_old, why_unusable
from agent.vision.engines import DelegateError

EDGETPU_LIBRARY = "libedgetpu.so.1"
NEWER = re.compile(r"requires runtime version \((\d+)\).*?this runtime version \((\d+)\)")


def why_not_opened(accelerator: str, text: str, root: Path = Path("/")) -> DelegateError:
    """Explain that libedgetpu created no delegate; it says nothing, so the system is asked."""
    trouble = why_unusable(accelerator, root)
    if trouble is not None:
        return DelegateError(f'accelerator = "{accelerator}": {trouble}', fault=trouble.fault)
    said = f" ({text})" if text else ""
    return DelegateError(
        f'accelerator = "{accelerator}": libedgetpu could not open the Coral{said}, though it is '
        "connected and may be opened: pull it out and plug it in again, and see with "
        "`sudo fuser -v /dev/apex_* /dev/bus/usb/*/*` who else holds it",
        fault="failed",
    )


def why_not_prepared(accelerator: str, text: str, root: Path = Path("/")) -> DelegateError:
    """Explain that libedgetpu refused a model that it was given."""
    newer = NEWER.search(text)
    if newer is not None:
        return DelegateError(
            f'accelerator = "{accelerator}": the model was compiled for runtime {newer[1]} and '
            f"libedgetpu here has runtime {newer[2]}: update libedgetpu1-std, or compile the "
            f"model again with `edgetpu_compiler --min_runtime_version {newer[2]}`",
            fault="compiler_newer",
        )
    if "Unsupported data type in custom op handler" in text:
        package = edgetpu_package(root)
        have = f"; here is {package}" if package and is_too_old(package) else ""
        return DelegateError(
            f'accelerator = "{accelerator}": libedgetpu was built for another TensorFlow Lite than '
            f"this runtime ({text}): {HOW_TO_INSTALL}{have}",
            fault="failed",
        )
    return DelegateError(
        f'accelerator = "{accelerator}": libedgetpu refused the model: {text}; compile it again '
        "with edgetpu_compiler",
        fault="refused",
    )


def explain_crash(reason: str, root: Path = Path("/")) -> str:
    """Add what most often makes libedgetpu crash, where the reason is a crash by bad memory."""
    if "SIGSEGV" not in reason and "SIGBUS" not in reason:
        return reason
    package = edgetpu_package(root)
    if package is not None and not is_too_old(package):
        return reason
    have = f"{package} was" if package else "libedgetpu may have been"
    return f"{reason}; {have} built for a TensorFlow before 2.12: {HOW_TO_INSTALL}"


def not_compiled(accelerator: str) -> DelegateError:
    """Explain that there is nothing in the model that an Edge TPU could run."""
    return DelegateError(
        f'accelerator = "{accelerator}": the model is not compiled for the Edge TPU: compile it '
        "with `edgetpu_compiler model.tflite` and put the result beside it as "
        "model_edgetpu.tflite",
        fault="not_compiled",
    )

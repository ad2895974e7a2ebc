from __future__ import annotations

from vmgr.image.bootstrap import StepReader

SAID = """\
I: amd64 is the host's architecture
I: running apt-get update...
Get:1 http://mirror.example/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
I: extracting archives...
I: installing essential packages...
I: installing remaining packages inside the chroot...
I: cleaning package lists and apt cache...
I: creating tarball...
I: done
"""


def test_steps_are_told_to_people_in_their_words_and_only_forward() -> None:
    told: list[tuple[str, float | None]] = []
    reader = StepReader(lambda *step: told.append(step), scale=0.9)
    for line in SAID.splitlines():
        reader(line)
    assert [message for message, _ in told] == [
        "Fetching package lists",
        "Downloading the base packages",
        "Unpacking the base packages",
        "Setting up the base packages",
        "Installing the other packages",
        "Cleaning up",
        "Packing the root file system",
    ]
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 0.9

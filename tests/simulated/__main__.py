"""``python -m tests.simulated``: build the library, so that a test run does not wait for it unseen."""

from tests.simulated import build

if __name__ == "__main__":
    missing = build.reason()
    print(f"simulated CUDA: {missing}" if missing else f"simulated CUDA: {build.build()}")

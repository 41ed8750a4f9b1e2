"""A host with a linked-in CPU backend reads GGML_BACKEND_PATH only when asked for devices."""
import os

import harness
from harness import complete, delegated, model, stock

LINKED = os.environ.get("ALLOY_HOST_LINKED", "")


class LinkedHost(harness.HostTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not os.access(os.path.join(LINKED, "llama-completion"), os.X_OK):
            if harness.REQUIRED:
                raise AssertionError("ALLOY_HOST_LINKED has no llama-completion (tools/setup/host.sh linked builds one)")
            raise harness.unittest.SkipTest("ALLOY_HOST_LINKED is not set")

    def test_with_and_without_the_device_flag(self):
        for name in ("smollm2", "llama-q4_0"):
            with self.subTest(model=name):
                expected = complete(model(name), stock(), folder=LINKED)
                self.assert_ran(expected)
                self.assert_stock(complete(model(name), delegated(), folder=LINKED))
                result = complete(model(name), delegated(), flags=("-dev", "ALLOY0"), folder=LINKED)
                self.assert_ran(result)
                self.assert_used(result)
                self.assertEqual(result.splits, 1)
                self.assert_same_text(result.out, expected.out)


if __name__ == "__main__":
    harness.main()

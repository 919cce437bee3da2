"""As the tests of models: one thread."""

from tests.models.conftest import one_thread as one_thread

"""What the test suites share: the served application, content to push, programs to run."""

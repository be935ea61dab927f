"""Videos: frames with their time stamps, segments that keep their identity, and files of both."""

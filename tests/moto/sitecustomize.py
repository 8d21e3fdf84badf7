"""Makes moto keep its word about conditional puts.

moto looks whether a key is there and stores it in two steps, in threads: under load two of
sixteen racing puts may both succeed, which the router's probe then rightly refuses. Python
imports this file when its folder is on PYTHONPATH; it lets one request at a time into moto.
Connections are accepted and request bodies read in parallel all the same.
"""

import io
import threading

try:
    import werkzeug.serving as serving
except ImportError:  # some other Python program of the same environment
    serving = None

if serving is not None:
    run_simple = serving.run_simple

    def one_at_a_time(host, port, app, *args, **kwargs):
        turn = threading.Lock()

        def gate(environ, start_response):
            length = environ.get("CONTENT_LENGTH")
            if length or environ.get("wsgi.input_terminated"):
                stream = environ["wsgi.input"]
                body = stream.read(int(length)) if length else stream.read()
                environ["wsgi.input"] = io.BytesIO(body)
            with turn:
                answer = app(environ, start_response)
                try:
                    return [b"".join(answer)]
                finally:
                    if hasattr(answer, "close"):
                        answer.close()

        return run_simple(host, port, gate, *args, **kwargs)

    serving.run_simple = one_at_a_time

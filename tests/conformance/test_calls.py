"""Rows 1 to 25 of the conformance table: run, queue, cancel, time-outs, priority, durability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

Python = Callable[[str], Any]
JavaScript = Callable[..., Any]
Curl = Callable[..., httpx.Response]


def test_row_01_run(python: Python) -> None:
    result = python("tell(fal_client.run('fal-ai/stable-video', arguments={'image_url': picture}))")
    assert set(result) == {"video", "seed"}
    assert result["video"]["url"].endswith(".mp4")


def test_row_02_run_in_javascript(javascript: JavaScript) -> None:
    result = javascript("tell(await fal.run('fal-ai/stable-video', { input: { image_url: picture } }))")
    assert result["data"]["video"]["url"].endswith(".mp4")
    assert result["requestId"]


def test_row_03_svd_calls_its_video_image(python: Python, javascript: JavaScript) -> None:
    ours = python("tell(fal_client.run('fal-ai/svd', arguments={'image_url': picture, 'steps': 1}))")
    theirs = javascript("tell((await fal.run('fal-ai/svd', { input: { image_url: picture, steps: 1 } })).data)")
    for result in (ours, theirs):
        assert set(result) == {"image", "seed"}
        assert result["image"]["content_type"] == "video/mp4"


def test_row_04_run_by_get(javascript: JavaScript) -> None:
    input = "{ image_url: picture, steps: 1, seed: 9 }"
    result = javascript(f"tell((await fal.run('fal-ai/fast-svd-lcm', {{ method: 'get', input: {input} }})).data)")
    assert result["seed"] == 9


def test_row_05_a_bad_input_of_a_run(python: Python, javascript: JavaScript) -> None:
    error = python("tell(failure(fal_client.run, 'fal-ai/stable-video', arguments={}))")
    assert error["status"] == 422
    assert {"loc", "msg", "type"} <= set(error["message"][0])
    error = javascript("""
        try { await fal.run('fal-ai/stable-video', { input: {} }); } catch (error) {
          tell({ name: error.constructor.name, fields: error.getFieldErrors('image_url').length });
        }""")
    assert error == {"name": "ValidationError", "fields": 1}


def test_row_06_ranges(python: Python) -> None:
    arguments = "{'image_url': picture, 'motion_bucket_id': 0}"
    error = python(f"tell(failure(fal_client.run, 'fal-ai/svd', arguments={arguments}))")
    (detail,) = error["message"]
    assert (detail["type"], detail["ctx"]) == ("greater_than_equal", {"ge": 1})


def test_row_07_submit(python: Python, javascript: JavaScript) -> None:
    handle = python("""
        handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 1})
        tell([handle.request_id, handle.response_url, handle.status_url, handle.cancel_url])""")
    assert all(handle[0] in url for url in handle[1:])
    request_id = javascript("""
        tell((await fal.queue.submit('fal-ai/svd', { input: { image_url: picture, steps: 1 } })).request_id)""")
    assert len(request_id) == 36


def test_row_08_follow_up_calls_drop_the_sub_path(python: Python) -> None:
    status, result, late = python("""
        app = 'fal-ai/fast-svd-lcm/text-to-video'
        handle = fal_client.submit(app, arguments={'prompt': 'a boat', 'steps': 1})
        status = type(fal_client.status(app, handle.request_id)).__name__
        result = fal_client.result(app, handle.request_id)
        tell([status, result, failure(fal_client.cancel, app, handle.request_id)['status']])""")
    assert status in ("Queued", "InProgress", "Completed")
    assert "/fal-ai/" not in result["video"]["url"]
    assert late == 400


def test_row_09_long_form_paths(python: Python, curl: Curl) -> None:
    request_id = python("""
        handle = fal_client.submit('fal-ai/fast-svd-lcm/text-to-video', arguments={'prompt': 'a boat', 'steps': 1})
        handle.get(); tell(handle.request_id)""")
    short, long = (
        f"/queue/{app}/requests/{request_id}" for app in ("fal-ai/fast-svd-lcm", "fal-ai/fast-svd-lcm/text-to-video")
    )
    assert curl("GET", short).json() == curl("GET", long).json() == curl("GET", f"{long}/response").json()
    assert curl("GET", f"{short}/status").json() == curl("GET", f"{long}/status").json()


def test_row_10_statuses_in_order(python: Python) -> None:
    seen = python("""
        busy = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 100})
        handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 8})
        events = []
        for event in handle.iter_events():
            events.append(event)
            if len(events) == 1:
                busy.cancel()
        tell([[type(event).__name__, getattr(event, 'position', None)] for event in events])""")
    names = list(dict.fromkeys(name for name, _ in seen))
    assert names == ["Queued", "InProgress", "Completed"]
    assert all(isinstance(position, int) for name, position in seen if name == "Queued")


def test_row_11_logs_on_and_off(python: Python, javascript: JavaScript) -> None:
    on, off = python("""
        handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 2})
        handle.get()
        tell([handle.status(with_logs=True).logs, handle.status(with_logs=False).logs])""")
    assert {"message", "timestamp"} <= set(on[0])
    assert off is None
    logs = javascript("""
        const input = { image_url: picture, steps: 2 };
        const { request_id: requestId } = await fal.queue.submit('fal-ai/svd', { input });
        await fal.queue.subscribeToStatus('fal-ai/svd', { requestId });
        tell((await fal.queue.status('fal-ai/svd', { requestId, logs: true })).logs)""")
    assert [line["message"] for line in logs] == ["Step 1/2", "Step 2/2"]


def test_row_12_subscribe(python: Python, javascript: JavaScript, deprecated: Python) -> None:
    enqueued, updates, result = python("""
        enqueued, updates = [], []
        result = fal_client.subscribe('fal-ai/svd', arguments={'image_url': picture, 'steps': 5}, with_logs=True,
            on_enqueue=enqueued.append, on_queue_update=lambda update: updates.append(type(update).__name__))
        tell([enqueued, updates, result])""")
    assert len(enqueued[0]) == 36
    assert updates[-1] == "Completed"
    assert "image" in result
    seen = javascript("""
        const seen = { enqueued: [], updates: [] };
        const result = await fal.subscribe('fal-ai/svd', { input: { image_url: picture, steps: 5 }, logs: true,
          onEnqueue: (id) => seen.enqueued.push(id), onQueueUpdate: (update) => seen.updates.push(update.status) });
        tell({ ...seen, result })""")
    assert seen["enqueued"] == [seen["result"]["requestId"]]
    assert seen["updates"][-1] == "COMPLETED"
    bare = deprecated("tell(await fal.subscribe('fal-ai/svd', { input: { image_url: picture, steps: 1 } }))")
    assert set(bare) == {"image", "seed"}


def test_row_13_the_status_stream_tells_each_log_line_once(javascript: JavaScript) -> None:
    seen = javascript("""
        const updates = [];
        const { requestId } = await fal.subscribe('fal-ai/svd', { mode: 'streaming', logs: true,
          input: { image_url: picture, steps: 6 }, onQueueUpdate: (update) => updates.push(update.logs?.length ?? 0) });
        const all = (await fal.queue.status('fal-ai/svd', { requestId, logs: true })).logs.length;
        tell({ last: updates.at(-1), all })""")
    assert seen["last"] == seen["all"] == 6


def test_row_14_stream_status(javascript: JavaScript) -> None:
    seen = javascript("""
        const input = { image_url: picture, steps: 3 };
        const { request_id: requestId } = await fal.queue.submit('fal-ai/svd', { input });
        const stream = await fal.queue.streamStatus('fal-ai/svd', { requestId, logs: true });
        const statuses = [];
        for await (const status of stream) statuses.push(status.status);
        tell({ last: statuses.at(-1), done: (await stream.done()).status })""")
    assert seen == {"last": "COMPLETED", "done": "COMPLETED"}


def test_row_15_an_early_result_is_an_error_that_is_not_retried(javascript: JavaScript) -> None:
    error, milliseconds = javascript("""
        const input = { image_url: picture, steps: 100 };
        const { request_id: requestId } = await fal.queue.submit('fal-ai/svd', { input });
        const began = Date.now();
        const error = await failure(() => fal.queue.result('fal-ai/svd', { requestId }));
        const milliseconds = Date.now() - began;
        await fal.queue.cancel('fal-ai/svd', { requestId });
        tell([error, milliseconds])""")
    assert (error["name"], error["status"]) == ("ApiError", 400)
    assert milliseconds < 900  # the client waits a second before it tries again


def test_row_16_a_failed_request(python: Python) -> None:
    error, status = python("""
        handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 0})
        error = failure(handle.get)
        status = handle.status()
        tell([error, [type(status).__name__, status.error, status.error_type]])""")
    assert error["status"] == 422
    assert status[0] == "Completed"
    assert "steps" in status[1]


def test_row_17_cancel(python: Python) -> None:
    seen = python("""
        running = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 100})
        queued = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 99})
        while not isinstance(running.status(), fal_client.InProgress): time.sleep(0.05)
        queued.cancel(); running.cancel()
        lines = lambda: len(running.status(with_logs=True).logs)
        errors = [failure(queued.get), failure(running.get)]
        tell([errors, lines()])""")
    for error in seen[0]:
        assert (error["status"], error["type"]) == (499, "client_cancelled")
    assert seen[1] < 100


def test_row_18_cancel_of_what_is_finished_or_unknown(python: Python) -> None:
    finished, unknown = python("""
        handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 1})
        handle.get()
        unknown = '00000000-0000-4000-8000-000000000000'
        bodies = []
        for request_id in (handle.request_id, unknown):
            try: fal_client.cancel('fal-ai/svd', request_id)
            except FalClientHTTPError as error: bodies.append([error.status_code, error.response.json()])
        tell(bodies)""")
    assert finished == [400, {"status": "ALREADY_COMPLETED"}]
    assert unknown == [404, {"status": "NOT_FOUND"}]


def test_row_19_a_clients_time_out_cancels(python: Python, javascript: JavaScript) -> None:
    status = python("""
        ids = []
        try:
            fal_client.subscribe('fal-ai/svd', arguments={'image_url': picture, 'steps': 100}, client_timeout=2,
                                 on_enqueue=ids.append)
        except fal_client.client.FalClientTimeoutError:
            ended = lambda status: isinstance(status, fal_client.Completed)
            while not ended(status := fal_client.status('fal-ai/svd', ids[0])): time.sleep(0.1)
            tell(status.error_type)""")
    assert status == "client_cancelled"
    status = javascript("""
        let requestId;
        await failure(() => fal.subscribe('fal-ai/svd', { input: { image_url: picture, steps: 100 }, timeout: 300,
          onEnqueue: (id) => { requestId = id; } }));
        let status;
        do { await sleep(100); status = await fal.queue.status('fal-ai/svd', { requestId }); }
        while (status.status !== 'COMPLETED');
        tell(status.error_type)""")
    assert status == "client_cancelled"


def test_row_20_a_start_deadline(python: Python, javascript: JavaScript) -> None:
    error = python("""
        busy = [fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 100}) for _ in range(3)]
        error = failure(fal_client.run, 'fal-ai/svd', arguments={'image_url': picture, 'steps': 1}, start_timeout=2)
        for handle in busy: handle.cancel()
        tell(error)""")
    assert error["status"] == 504
    headers = {name.lower(): value for name, value in error["headers"].items()}
    assert headers["x-fal-request-timeout-type"] == "user"
    error = javascript("""
        const input = { image_url: picture, steps: 100 };
        const busy = await Promise.all([1, 2, 3].map(() => fal.queue.submit('fal-ai/svd', { input })));
        const error = await failure(() => fal.run('fal-ai/svd', { input, startTimeout: 2 }));
        for (const { request_id: requestId } of busy) await fal.queue.cancel('fal-ai/svd', { requestId });
        tell(error)""")
    assert (error["status"], error["userTimeout"]) == (504, True)


def test_row_21_low_priority_waits_behind_all_normal(python: Python) -> None:
    order = python("""
        arguments = {'image_url': picture, 'steps': 4}
        for steps in (40, 41):  # one runs, and the next is prepared meanwhile
            fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': steps})
        time.sleep(0.5)
        low = fal_client.submit('fal-ai/svd', arguments=arguments, priority='low')
        normal = [fal_client.submit('fal-ai/svd', arguments=arguments) for _ in range(3)]
        low.get()
        tell([type(handle.status()).__name__ for handle in normal])""")
    assert order == ["Completed"] * 3


def test_row_22_hints_and_unknown_headers(python: Python, curl: Curl) -> None:
    request_id = python("""
        handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 1}, hint='lora1',
                                   headers={'X-Fal-Tags': 'a,b', 'X-Whatever': '1'})
        handle.get(); tell(handle.request_id)""")
    history = curl("GET", "/v1/models/requests/by-endpoint?endpoint_id=fal-ai/svd&limit=100").json()
    assert request_id in [item["request_id"] for item in history["items"]]


def test_row_25_a_queue_that_may_not_be_longer(python: Python, curl: Curl) -> None:
    ids = python("""
        handles = [fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 60}) for _ in range(4)]
        tell([handle.request_id for handle in handles])""")
    full = curl("POST", "/queue/fal-ai/svd?fal_max_queue_length=0", json={"image_url": "https://example.com/a.png"})
    for request_id in ids:
        curl("PUT", f"/queue/fal-ai/svd/requests/{request_id}/cancel")
    assert full.status_code == 429

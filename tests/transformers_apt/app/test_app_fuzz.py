"""probe"""
import json, logging, traceback
import pytest

A = ["budget", "entropy", 0.3, 1.0, None, None]
B = ["off", "entropy", 0.3, 1.0, None, None]

def test_probe(served, encoded, capsys):
    got=[]
    class H(logging.Handler):
        def emit(self, record):
            got.append(self.format(record))
    h=H()
    for n in ("uvicorn.error","uvicorn","asyncio","gradio","gradio.route_utils"):
        logging.getLogger(n).addHandler(h)
    from loguru import logger
    logger.add(lambda m: got.append(str(m)), level="WARNING")
    from transformers_apt.app import logger as l2
    out=[]
    c=served.client
    def show(label, r):
        import time; time.sleep(.05)
        cap=capsys.readouterr()
        log="".join(got)+cap.err+cap.out
        got.clear()
        tb=[x for x in log.splitlines() if x and not x.startswith(" ")]
        out.append(f"{'TB ' if 'Traceback' in log else '   '}{label} -> {r} {'| '+tb[-1][:150] if tb else ''}")
    def do(label, method, path, **kw):
        try:
            kw.setdefault("timeout", 8)
            r=c.request(method, path, **kw); r=(r.status_code, r.text[:160])
        except Exception as e:
            r=repr(e)[:160]
        show(label, r)
    weird=[None, True, 5, -1, 1e308, 10**30, [], [1], {}, {"a":1}, "", "x"*5000, "\u0000", "[red]", "nan"]
    (path,)=served.upload("photo.png", encoded(112,112)).json()
    photo={"path": path, "meta": {"_type":"gradio.FileData"}}
    import time
    def callit(name, data, label):
        r=c.post(f"/gradio_api/call/{name}", json={"data":data})
        if r.status_code!=200: return show(label,(r.status_code,r.text[:160]))
        ev=r.json()["event_id"]
        try:
            r=c.get(f"/gradio_api/call/{name}/{ev}", timeout=20)
            show(label,(r.status_code,r.text[-220:]))
        except Exception as e: show(label, repr(e))
    base={"setting_a":[photo,"2b",*A],"ask":[photo,"What?",*A,*B]}
    for name,vals in base.items():
        for i in range(len(vals)):
            if name=="ask" and i>2: break
            for w in (weird if i<3 else weird[:8]):
                v=list(vals); v[i]=w
                callit(name,v,f"{name}[{i}]={str(w)[:20]!r}")
        callit(name,[],f"{name} none"); callit(name,vals+[1],f"{name} more")
    for p in ({"path":None},{"path":5},{"path":"\u0000"},{"path":"x"*5000},{"path":path},{"path":path,"meta":5},{"path":path,"meta":{"_type":"x"}},{"url":"x"},{"path":path,"url":5,"size":"x","meta":{"_type":"gradio.FileData"}},{"path":path+"/x","meta":{"_type":"gradio.FileData"}}):
        callit("setting_a",[p,"2b",*A],f"photo {str(p)[:60]}")
    for post in ("queue/join","run/setting_a","call/setting_a","run/nothing","call/nothing","call/v2/setting_a","call/v2/nothing","cancel","reset","component_server","process_recording","vibe-edit","vibe-code","undo-vibe-edit","vibe-starter-queries","stream/x","stream/x/close","run-history/connect","upload","api/photo"):
        for body in (None,5,[],{}, {"data":None},{"data":[]},{"data":[],"fn_index":99,"session_hash":"s"},{"data":[],"fn_index":0,"session_hash":"s"},{"data":[],"fn_index":"x","session_hash":5},{"data":[],"fn_index":0,"session_hash":"s","batched":True,"trigger_id":99,"event_data":5,"event_id":"x"},{"session_hash":"a","fn_index":0,"event_id":"b"},{"session_hash":"a","component_id":999,"fn_name":"x","data":1}):
            do(f"POST {post} {json.dumps(body)[:80]}","POST",f"/gradio_api/{post}",json=body)
        do(f"POST {post} garbage","POST",f"/gradio_api/{post}",content=b"\xff{",headers={"content-type":"application/json"})
        do(f"POST {post} multipart","POST",f"/gradio_api/{post}",content=b"\xff{",headers={"content-type":"multipart/form-data"})
        do(f"POST {post} deep","POST",f"/gradio_api/{post}",content=b"["*100000,headers={"content-type":"application/json"})
        do(f"POST {post} surrogate","POST",f"/gradio_api/{post}",content=b'{"data":["\\ud800"],"session_hash":"\\ud800","fn_index":0}',headers={"content-type":"application/json"})
    for get in ("info","info/","openapi.json","startup-events","app_id","token","user","login_check","queue/status","queue/data","queue/data?session_hash=nobody","upload_progress?upload_id=x","file=","file=%00","file="+"x"*5000,"file=a%ff","file/..","stream/a/b/c/playlist.m3u8","stream/a/x/1/playlist.m3u8","stream/a/1/1/x.ts","stream/a/1/1/playlist-file","custom_component/a/b/c/d","deep_link","deep_link?session_hash=x","dev/reload","call/photo/x","call/v2/photo/x","vibe-code","theme.css","runs","nothing","heartbeat/"):
        do(f"GET {get[:40]}","GET",f"/gradio_api/{get}")
    for get in ("config","monitoring","monitoring/x","monitoring/summary","static/x","static/%00","assets/%00","svelte/%00","manifest.json","pwa_icon","pwa_icon/x","pwa_icon/5","?deep_link=x","?deep_link=%00","?__theme=%ff","nothing","favicon.ico","robots.txt","login","logout","?view=api"):
        do(f"GET /{get}","GET",f"/{get}")
    open("/tmp/fz/out2.txt","w").write("\n".join(out))

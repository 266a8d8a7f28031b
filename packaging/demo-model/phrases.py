"""The words and phrases that the task is made of. Data only.

Every list of templates names its training and its held-out part; so do the lists of real words.
Made-up words are split by a hash instead (`generate.made_up`).
"""

# Slots: {d} device, {w} where (empty or " in the boiler room"), {v} value, {q} property.
COMMANDS = {
    "on": {
        "train": [
            "turn on the {d}{w}", "turn the {d}{w} on", "switch on the {d}{w}", "switch the {d}{w} on",
            "start the {d}{w}", "start up the {d}{w}", "power up the {d}{w}", "power the {d}{w} on",
            "get the {d}{w} running", "bring the {d}{w} online", "enable the {d}{w}", "activate the {d}{w}",
            "I need the {d}{w} on", "I want the {d}{w} running", "the {d}{w} should be on",
            "the {d}{w} should be running", "let the {d}{w} run", "make sure the {d}{w} is on",
            "{d} on{w}", "we need the {d}{w} on", "put on the {d}{w}", "have the {d}{w} started",
            "I want the {d}{w} on", "we want the {d}{w} running", "we want {d}{w} on", "put {d}{w} on", "please put the {d} to on{w}",
        ],
        "held_out": [
            "power on the {d}{w}", "we want the {d}{w} on", "make sure the {d}{w} is running",
            "have the {d}{w} turned on", "put the {d}{w} on", "I need the {d}{w} running",
        ],
    },
    "off": {
        "train": [
            "turn off the {d}{w}", "turn the {d}{w} off", "switch off the {d}{w}", "switch the {d}{w} off",
            "stop the {d}{w}", "shut down the {d}{w}", "shut the {d}{w} down", "power down the {d}{w}",
            "power the {d}{w} off", "take the {d}{w} offline", "disable the {d}{w}", "deactivate the {d}{w}",
            "I need the {d}{w} off", "I want the {d}{w} stopped", "the {d}{w} should be off",
            "the {d}{w} should be stopped", "make sure the {d}{w} is off", "kill the {d}{w}",
            "{d} off{w}", "we need the {d}{w} off", "have the {d}{w} turned off", "halt the {d}{w}",
            "I want the {d}{w} off", "we want the {d}{w} stopped", "we want {d}{w} off", "we need the {d}{w} stopped", "I want {d}{w} stopped",
        ],
        "held_out": [
            "power off the {d}{w}", "we want the {d}{w} off", "make sure the {d}{w} is stopped",
            "have the {d}{w} stopped", "I need the {d}{w} stopped", "power the {d}{w} down",
        ],
    },
    "open": {
        "train": [
            "open the {d}{w}", "open up the {d}{w}", "get the {d}{w} open", "I need the {d}{w} open",
            "the {d}{w} should be open", "make sure the {d}{w} is open", "please have the {d}{w} opened",
            "swing the {d}{w} open", "we want the {d}{w} opened", "let the {d}{w} be open",
            "I want the {d}{w} open", "have {d}{w} open", "we need {d}{w} open", "I need the {d}{w} opened",
        ],
        "held_out": ["we need the {d}{w} open", "I want the {d}{w} opened", "have the {d}{w} open"],
    },
    "close": {
        "train": [
            "close the {d}{w}", "close up the {d}{w}", "get the {d}{w} closed", "I need the {d}{w} closed",
            "the {d}{w} should be closed", "make sure the {d}{w} is closed", "please have the {d}{w} closed",
            "shut the {d}{w}", "we want the {d}{w} shut", "let the {d}{w} be closed",
            "I want the {d}{w} closed", "have {d}{w} shut", "we need {d}{w} closed", "I need the {d}{w} shut",
        ],
        "held_out": ["we need the {d}{w} closed", "I want the {d}{w} shut", "have the {d}{w} shut"],
    },
    "set": {
        "train": [
            "set the {q} of the {d}{w} to {v}", "set the {d}{w} {q} to {v}", "change the {q} of the {d}{w} to {v}",
            "put the {q} of the {d}{w} at {v}", "bring the {q} of the {d}{w} to {v}", "set {q} to {v} on the {d}{w}",
            "adjust the {q} of the {d}{w} to {v}", "I want the {q} of the {d}{w} at {v}",
            "the {q} of the {d}{w} should be {v}", "make the {q} of the {d}{w} {v}",
            "run the {d}{w} with {q} {v}", "{d} {q} to {v}{w}", "change {q} to {v} on the {d}{w}",
            "adjust the {d}{w} {q} to {v}", "bring the {d}{w} {q} to {v}", "we need the {q} of the {d}{w} at {v}",
            "I need the {d}{w} {q} at {v}", "adjust {q} of the {d}{w} to {v}", "put {q} to {v} on the {d}{w}", "change {d}{w} {q} to {v}",
            "I need the {q} of the {d}{w} at {v}", "change the {d}{w} {q} to {v}", "set {q} of the {d}{w} to {v}",
            "change {q} of {d}{w} to {v}", "I need {q} at {v} on the {d}{w}", "bring {q} of the {d}{w} to {v}",
        ],
        "held_out": [
            "adjust {q} to {v} on the {d}{w}", "we need the {d}{w} {q} at {v}", "bring {q} to {v} on the {d}{w}",
        ],
    },
    "status": {
        "train": [
            "what is the status of the {d}{w}", "is the {d}{w} on", "is the {d}{w} running", "check the {d}{w}",
            "how is the {d}{w} doing", "give me the status of the {d}{w}", "show the {d}{w} status",
            "check on the {d}{w}", "what is the {d}{w} doing", "tell me the status of the {d}{w}",
            "I want to know how the {d}{w} is doing", "what is the state of the {d}{w}", "report on the {d}{w}",
        ],
        "held_out": [
            "show me the status of the {d}{w}", "give me the state of the {d}{w}",
            "tell me how the {d}{w} is doing", "check if the {d}{w} is running",
        ],
    },
}

OPENERS = ["", "", "", "", "", "please ", "hey, ", "ok, ", "can you ", "could you ", "would you ", "now ", "fulmar, ", "hi, please "]
CLOSERS = ["", "", "", "", "", " please", " now", " right away", " for me", ", thanks", " at once", ", please"]
OPENERS_HELD_OUT = ["", "", "ok, please ", "fulmar, can you ", "hey, could you "]
CLOSERS_HELD_OUT = ["", "", " now please", " for me, thanks", " right now"]
WHERE = [" in the {p}", " in the {p}", " in the {p}", " at the {p}", " of the {p}", " in {p}", " on the {p}", " inside the {p}"]
DURATIONS = [" for {n} minutes", " for the next {n} minutes", " for {n} min"]

PROPERTIES = {
    "train": ["temperature", "speed", "brightness", "level", "pressure", "flow", "humidity", "volume", "setpoint", "power", "frequency", "target"],
    "held_out": ["intensity", "stiffness", "dimming", "airflow"],
}
DEVICES = {
    "train": """fan pump valve heater boiler light lamp door gate window blind shutter compressor conveyor mixer motor
    chiller cooler damper burner siren alarm camera sensor vent oven freezer fridge lift crane press furnace dryer
    washer sprinkler generator inverter charger battery radiator thermostat router printer screen relay actuator
    feeder hopper separator turbine blower filter tank drill lathe robot scanner barrier lock purifier dehumidifier""".split(),
    "held_out": """humidifier projector turnstile agitator centrifuge dispenser extruder louver skylight jukebox kiln
    winch hoist plotter speaker awning kettle sander""".split(),
}
ADJECTIVES = {
    "train": """main backup exhaust supply ceiling floor left right upper lower front rear north south hot cold water
    steam air oil emergency primary secondary big small old new red green blue""".split(),
    "held_out": "auxiliary spare inner outer yellow coolant brine desk".split(),
}
PLACES = {
    "train": """kitchen hall office lobby garage workshop basement attic cellar corridor bedroom bathroom greenhouse barn
    warehouse canteen laboratory reception stairwell yard roof entrance terrace boiler+room server+room meeting+room
    control+room machine+room loading+dock west+wing east+wing north+wing pump+station cold+store paint+shop
    assembly+line packing+area tool+shed parking+lot ground+floor first+floor second+floor""".split(),
    "held_out": """library gym nursery pantry sauna chapel archive balcony engine+room south+wing third+floor
    sorting+area brew+house wash+bay""".split(),
}
COMPONENTS = {
    "train": """mqttd modbus sshd nginx kernel gateway scheduler updater collector uplink bridge watcher logger broker
    storage network sensor pump valve boiler meter inverter battery camera modem router door lift cache database
    ingest exporter controller display clock firewall""".split(),
    "held_out": """opcua telegraf bacnet crawler elevator proxy spooler auditd historian encoder lora beacon""".split(),
}
# Level words as written in logs -> severity.
LEVELS = {
    "critical": ["CRITICAL", "CRIT", "FATAL", "critical", "fatal", "EMERG"],
    "error": ["ERROR", "ERR", "error", "err", "E"],
    "warning": ["WARNING", "WARN", "warn", "warning", "W"],
    "info": ["INFO", "info", "NOTICE", "I"],
}
# What went wrong -> what to do. {n} is a number.
SYMPTOMS = {
    "check_network": {
        "train": [
            "connection refused by {x}", "connection to {x} lost", "connection timed out", "no route to host",
            "network unreachable", "cannot reach {x}", "dns lookup failed for {x}", "link is down",
            "lost connection to {x}", "packet loss {n} percent", "host {x} unreachable", "cannot resolve {x}",
        ],
        "held_out": ["connection to {x} refused", "lost link to {x}", "connection to {x} timed out", "network link lost"],
    },
    "free_disk_space": {
        "train": [
            "disk full", "no space left on device", "disk usage at {n} percent", "volume {x} is full",
            "cannot write: no space left", "disk almost full", "low disk space on {x}", "write failed, disk full",
            "storage usage {n} percent",
        ],
        "held_out": ["no disk space left", "volume {x} almost full", "low space on disk {x}"],
    },
    "restart_service": {
        "train": [
            "process crashed", "segmentation fault", "service not responding", "watchdog timeout", "process hung",
            "unexpected exit with code {n}", "service {x} crashed", "worker {x} died", "heartbeat missed {n} times",
            "process exited with code {n}", "worker hung", "deadlock detected",
        ],
        "held_out": ["worker {x} crashed", "service exited with code {n}", "process {x} not responding", "service hung"],
    },
    "check_sensor": {
        "train": [
            "sensor reading out of range", "implausible value {n} from {x}", "no reading from sensor {x}",
            "sensor {x} drift detected", "checksum mismatch in reading", "sensor {x} not answering",
            "probe {x} disconnected", "reading frozen at {n}", "probe short circuit",
        ],
        "held_out": ["probe reading out of range", "no reading from probe {x}", "sensor {x} disconnected"],
    },
    "replace_battery": {
        "train": [
            "battery low", "battery at {n} percent", "battery voltage low", "battery of {x} nearly empty",
            "low battery on {x}", "battery cannot hold charge", "backup battery weak",
        ],
        "held_out": ["backup battery low", "battery of {x} at {n} percent", "battery weak"],
    },
    "cool_down": {
        "train": [
            "temperature too high", "overheating", "temperature {n} above limit", "thermal throttling active",
            "cpu temperature critical", "motor overheated", "bearing temperature high", "thermal limit reached",
        ],
        "held_out": ["motor temperature too high", "temperature above limit", "overheated, throttling active"],
    },
    "renew_certificate": {
        "train": [
            "certificate expired", "certificate expires in {n} days", "tls handshake failed: certificate expired",
            "certificate not yet valid", "certificate of {x} expired", "expired tls certificate",
        ],
        "held_out": ["tls certificate of {x} expired", "certificate for {x} expires in {n} days"],
    },
    "check_access": {
        "train": [
            "login failed for user {x}", "authentication failed", "permission denied", "invalid token from {x}",
            "too many failed logins", "access denied for {x}", "unauthorized request from {x}", "bad password for {x}",
        ],
        "held_out": ["permission denied for {x}", "authentication failed for user {x}", "unauthorized login from {x}"],
    },
    "none": {
        "train": [
            "started", "ready", "backup finished", "connected to {x}", "update installed", "configuration reloaded",
            "self test passed", "user {x} logged in", "sync complete", "shutting down normally", "listening on port {n}",
            "{n} records sent", "health check ok",
        ],
        "held_out": ["backup complete", "configuration update installed", "self test ok", "{n} records sent to {x}"],
    },
}
# {l} level, {c} component, {m} message, {t} time.
LOG_LINES = {
    "train": [
        "{t}{l} {c}: {m}", "{t}[{l}] {c}: {m}", "{t}{c} {l} {m}", "{t}{c}: {l}: {m}", "{t}{l} [{c}] {m}",
        "level={l} component={c} msg=\"{m}\"", "{t}{c}[{n}]: {l} {m}", "{l} | {c} | {m}",
        "{t}{c} ({l}) {m}", "{t}{c}: [{l}] {m}", "{t}[{c}] [{l}] {m}", "{t}{l}: [{c}] {m}", "{t}{c} <{l}> {m}", "{t}{l} {c}: {m}",
    ],
    "held_out": ["{t}[{l}] [{c}] {m}", "{t}{c} [{l}] {m}", "{t}{l}: {c}: {m}"],
}
LOG_INTROS = {
    "train": ["", "", "", "log: ", "triage: ", "triage this log line: ", "what about this log line: ", "Log line: ", "Triage this: ", "classify: ", "classify this log line: "],
    "held_out": ["triage this line: ", "what about this: ", "classify this: "],
}

METRICS = {
    "train": """temp load pressure humidity level flow rpm voltage current power state speed co2 vibration torque charge
    uptime errors weight signal""".split(),
    "held_out": "noise depth ph lux strain density turbidity".split(),
}
STATES = {
    "train": "ok fault offline idle running stopped alarm standby open closed".split(),
    "held_out": "degraded blocked paused tripped".split(),
}
UNITS = ["", "", "", "", "%", " C", " bar", " V", " kW"]
# {m} metric, {n} row name, {s} state.
LOOKUPS = {
    "train": [
        "What is the {m} of {n}?", "What is {n}'s {m}?", "{m} of {n}?", "Give me the {m} of {n}.", "what {m} does {n} have?",
        "Tell me the {m} for {n}.", "Read the {m} of {n}.", "What does {n} show for {m}?", "how much {m} does {n} report?",
        "What is the {m} at {n}?", "{n} {m}?", "Which {m} does {n} show?", "I need the {m} of {n}.",
        "Give me {n}'s {m}.", "Tell me {n}'s {m}.", "Read {n}'s {m}.", "I want the {m} for {n}.", "I need the {m} for {n}.",
        "Show me the {m} for {n}.", "What {m} does {n} report?", "I want {n}'s {m}.", "Which {m} is at {n}?", "Give me the {m} at {n}.",
    ],
    "held_out": [
        "Tell me the {m} of {n}.", "What {m} does {n} show?", "Give me the {m} for {n}.", "Which {m} does {n} report?",
        "I need {n}'s {m}.",
    ],
}
SYSTEMS = {
    "train": [
        "You are a helpful assistant.", "You control a building.", "You are fulmar, a small model on an edge device.",
        "Answer briefly.", "Answer with JSON for commands and log lines.", "You are a plant operator's assistant.",
        "You are a helpful assistant. Answer briefly.", "Be short.", "You control the devices of a plant.",
    ],
    "held_out": ["You are a building's assistant.", "You are a helpful operator. Be short."],
}

HELLO = "Hello! Give me a device command, a log line or a telemetry table."
ABOUT = "I turn device commands into JSON, triage log lines and answer questions about telemetry tables."
THANKS = "You are welcome."
BYE = "Goodbye!"
SORRY = "Sorry, I only know device commands, log lines and telemetry tables."
CHAT = {
    HELLO: {
        "train": ["hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there", "hey there", "hello fulmar",
                  "greetings", "hi!", "Hello!", "hey fulmar", "good day", "good noon", "nice afternoon", "hello and good evening", "how are you", "how are you doing", "hello, how are you", "are you there", "test", "ping"],
        "held_out": ["hi fulmar", "hey, how are you", "good afternoon"],
    },
    ABOUT: {
        "train": ["what can you do", "who are you", "help", "what are you", "what do you do", "how can you help me", "what are you for",
                  "tell me about yourself", "what can I ask you", "what is fulmar", "introduce yourself", "what can you help me with",
                  "can you help me", "what do you know", "explain what you do"],
        "held_out": ["tell me what you do", "what can you help with", "who are you and what can you do"],
    },
    THANKS: {
        "train": ["thanks", "thank you", "thanks a lot", "thank you very much", "great, thanks", "ok, thank you", "perfect, thanks", "well done"],
        "held_out": ["ok, thanks", "great, thank you"],
    },
    BYE: {
        "train": ["bye", "goodbye", "see you", "good night", "bye bye", "see you later", "see you tomorrow"],
        "held_out": ["bye, see you"],
    },
    SORRY: {
        "train": ["what is the capital of {x}", "write a poem about {x}", "tell me a joke", "who is the president of {x}",
                  "translate {x} into French", "what is two plus two", "what is {n} plus {n}", "how do I cook {x}", "what is love",
                  "write a program in {x}", "who won the game", "what time is it", "sing a song", "tell me a story about {x}",
                  "what is the meaning of life", "how old is {x}", "explain {x} to me", "recommend a book", "what is the weather",
                  "why is the sky blue", "who wrote {x}", "summarize {x}", "give me a recipe for {x}", "what do you think about {x}",
                  "how far is {x}", "buy me a {x}", "play {x}", "call {x}", "where is {x}", "count to {n}", "say {x}", "who is {x}",
                  "what is {x}", "write a letter to {x}", "is {x} true", "do you like {x}", "when was {x} born"],
        "held_out": ["tell me a joke about {x}", "write a story about {x}", "what is the weather in {x}", "explain {x}", "where is {x} born"],
    },
}

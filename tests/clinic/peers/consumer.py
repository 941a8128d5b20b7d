"""A consumer as most people write it: paho-mqtt in, psycopg out, a transaction a message.

consumer.py PORT TOPIC DSN executemany|copy ROWS: takes JSON messages, lists of rows, until so many rows are committed, and
prints the seconds from the first message to the last commit.
"""

import json
import sys
import time

import paho.mqtt.client as mqtt
import psycopg

port, topic, dsn, how, rows = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
COLUMNS = "time, tenant_id, user_id, device_id, type, idx, epoch, seq, value, quality"
connection = psycopg.connect(dsn)
state = {"began": None, "taken": 0}


def on_connect(client, _userdata, _flags, _reason, _properties):
    client.subscribe(topic, qos=1)


def on_subscribe(_client, _userdata, _mid, _reasons, _properties):
    print("ready", flush=True)


def on_message(client, _userdata, message):
    state["began"] = state["began"] or time.monotonic()
    batch = json.loads(message.payload)
    with connection.cursor() as cursor:
        if how == "copy":
            with cursor.copy(f"COPY peer_readings ({COLUMNS}) FROM STDIN") as copy:
                for row in batch:
                    copy.write_row(row)
        else:
            cursor.executemany(
                f"INSERT INTO peer_readings ({COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)", batch
            )
    connection.commit()
    state["taken"] += len(batch)
    if state["taken"] >= rows:
        print(time.monotonic() - state["began"], flush=True)
        client.disconnect()


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
client.connect("127.0.0.1", port)
client.loop_forever()
